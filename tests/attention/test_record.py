"""docs/attention.md says what the committed records of its measurements say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kvquant.shipped import checkout_root

ROOT = checkout_root() or Path()
PARTS = ("", "-real", "-peers", "-wide", "-alone", "-divergence", "-rk3588")
RECORDS = tuple(f"attention{part}.json" for part in PARTS)


def record(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "benchmarks/results" / name).read_text())
    return loaded


@pytest.fixture
def text() -> str:
    return (ROOT / "docs/attention.md").read_text()


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])


def test_the_pull_request_shows_rows_of_the_tables(text: str) -> None:
    rows = [
        line
        for line in (ROOT / "docs/upstream/0004-kv-attention.md").read_text().splitlines()
        if line.startswith(("| stock", "| patched"))
    ]
    assert len(rows) == 8
    assert [row for row in rows if row not in text] == []


def test_the_figure() -> None:
    from attention_figure import attention_figure

    drawn = attention_figure(record("attention-real.json"))
    assert (ROOT / "docs/figures/attention.svg").read_text() == drawn
    other = record("attention-real.json")
    other["summary"]["rows"][0]["tokens_per_second"] *= 2
    assert attention_figure(other) != drawn


def test_the_benchmark_of_real_models(text: str) -> None:
    from attention_summary import summarize
    from attention_tables import decode_gains, real_parts

    made = record("attention-real.json")
    assert json.loads(json.dumps(summarize(made))) == made["summary"], "the summary is not that of the runs"
    for name, table in real_parts(made).items():
        assert f"<!-- {name} -->\n\n{table}\n" in text, f"the table {name} is not the record's"
    targets = made["summary"]["targets"]
    missed = [target for target in targets if not target["met"]]
    assert f"{len(targets) - len(missed)} of {len(targets)}" in text
    assert all(f"{target['what']}: {target['ratio']:.2f}" in text for target in missed), "a miss is not named"
    readme = " ".join((ROOT / "README.md").read_text().split())
    f16, q8_0, q4_0 = decode_gains(made, "qwen2.5-coder-0.5b", 8192)
    assert f"{f16} times with f16, {q8_0} times with q8_0, {q4_0} times with q4_0" in readme
    f16, q8_0, q4_0 = decode_gains(made, "qwen2.5-coder-0.5b", 32768)
    assert f"behind 32,768 tokens {f16}, {q8_0} and {q4_0} times" in readme


def test_the_peers(text: str) -> None:
    from attention_peers import page

    assert page(record("attention-peers.json")) == text, "the table is not the record's"


def test_the_benchmark(text: str) -> None:
    from attention_summary import summarize
    from attention_tables import all_tables

    made = record("attention.json")
    assert json.loads(json.dumps(summarize(made))) == made["summary"], "the summary is not that of the runs"
    for name, table in all_tables(made).items():
        assert name == "targets" or table in text, f"the table {name} is not the record's"
    missed = [target["what"] for target in made["summary"]["targets"] if not target["met"]]
    assert all(what in text for what in missed), "a missed target is not named"
    assert f"{len(made['summary']['targets'])} comparisons" in text
    assert f"{made['summary']['bandwidth_gb_per_s']} GB/s" in text


def test_the_benchmark_of_a_whole_model(text: str) -> None:
    from attention_summary import summarize
    from attention_tables import speed_table

    made = record("attention-wide.json")
    assert json.loads(json.dumps(summarize(made))) == made["summary"], "the summary is not that of the runs"
    for what in ("decode", "256"):
        assert speed_table(made, "gqa2-128-wide", what) in text
    missed = [target for target in made["summary"]["targets"] if not target["met"]]
    assert f"{len(missed)} of {len(made['summary']['targets'])}" in text


def test_attention_alone(text: str) -> None:
    from attention_alone import figure, tables

    made = record("attention-alone.json")
    assert set(made["series"]) == {"now", "before"}
    for name, table in tables(made).items():
        assert table in text, f"the table {name} is not the record's"
    assert f"{made['bytes_per_second'] / 1e9:.1f} GB/s" in text
    for work, depth in (("decode", 8192), ("prefill", 2048)):
        assert gains(made, work, depth) in text, f"the gain in {work} is not the record's"
    drawn = figure(made)
    assert (ROOT / "docs/figures/attention-alone.svg").read_text() == drawn
    made["runs"][0]["milliseconds"]["now"] = [9.0]
    assert figure(made) != drawn


def gains(made: dict[str, Any], work: str, depth: int) -> str:
    """How many times as fast as before q8_0 and q4_0 are, where decoding in groups of 2 is left out."""
    from attention_alone import ratio

    found = [
        ratio(run["milliseconds"]["before"], run["milliseconds"]["now"])
        for run in made["runs"]
        if (run["work"], run["depth"]) == (work, depth)
        and run["k"] == run["v"]
        and run["k"] in ("q8_0", "q4_0")
        and not (work == "decode" and run["shape"] == "groups of 2")
    ]
    return f"{min(found):.1f} to {max(found):.1f} times as fast"


def test_the_divergence(text: str) -> None:
    from attention_tables import divergence_table

    made = record("attention-divergence.json")
    assert divergence_table(made) in text
    assert f"{made['rows'][0]['n_chunks']} chunks" in text
    for row in made["rows"]:
        difference, error = row["difference"]
        assert difference < 3 * error, f"{row['policy']} costs more than with stock's attention"


def test_the_arm_build(text: str) -> None:
    from attention_tables import arm_table

    made = record("attention-rk3588.json")
    assert arm_table(made) in text
    assert made["instructions"]["sdot 4s"] > 0
    assert f"{made['instructions']['sdot 4s']} `sdot`" in text
    assert made["tests"].split(" in ")[0] in text
    assert "failed" not in made["tests"]


@pytest.mark.parametrize("name", RECORDS)
def test_records_name_no_folder_of_the_machine_they_were_made_on(name: str) -> None:
    text = json.dumps(record(name))
    assert not any(part in text for part in ('"/home', '"/root', '"/work', '"/tmp'))
