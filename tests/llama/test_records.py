"""The committed records of the heavy proofs say what the documents say, and what they must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvquant.llama.pin import load_pin, tag_number
from kvquant.shipped import checkout_root, patches_folder
from upstream_alone import PIECES

ROOT = checkout_root() or Path()


def record(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "benchmarks/results" / name).read_text())
    return loaded


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_the_rk3588_record() -> None:
    made, text = record("rk3588.json"), document("rk3588.md")
    features = made["build"]["features"]
    assert features["sdot"] > 500
    assert features["fp16_fmla"] > 100
    assert features["system_info"]["DOTPROD"] == features["system_info"]["FP16_VA"] == 1
    assert f"- {features['sdot']:,} `sdot` and {features['fp16_fmla']} 16-bit `fmla`" in text
    assert f"needs glibc {features['glibc']}" in text
    for run in made["runs"]:
        assert run["same_cache"]
        tokens = "yes" if run["same_tokens"] else "no"
        assert f"| {run['arch']} | `{run['policy']}` | {run['n_bytes']:,} | yes | {tokens} |" in text


def test_the_record_of_the_walk() -> None:
    made, text = record("patch-range.json"), document("patching.md")
    pin = load_pin(patches_folder())
    assert (made["oldest"], made["newest"]) == (pin.range.oldest, pin.range.newest)
    assert made["walked"] == str(pin.range.walked)
    assert f"**{pin.range.oldest} to {pin.range.newest}**, last walked on {pin.range.walked}" in text
    rows = {row["tag"]: row for row in made["tags"]}
    assert len(rows) >= 40
    assert {pin.range.oldest, pin.range.newest, pin.tag} <= set(rows)
    assert f"{len(rows)} of the {made['n_known']} tags that come as source distributions" in text
    for tag, row in rows.items():
        assert row["sha256"] == pin.tags[tag]
        assert not row["failures"]
        assert row["git_applies"] and row["same_as_apply"] and row["reverts"]
    for edge in made["edges"]:
        assert f"| {edge['before']} | {edge['tag']} |" in text
        assert rows[edge["before"]] and rows[edge["tag"]]
    changed = {edge["tag"] for edge in made["edges"]}
    last = [tag for tag in pin.tags if tag in pin.range][-100:]
    assert f"{len(changed)} tags, {len(changed & set(last))} of them among the last 100" in text
    *first, last_built = sorted((row["tag"] for row in made["built"]), key=tag_number)
    assert f"{', '.join(first)} and {last_built} were built and run" in " ".join(text.split())
    for row in made["built"]:
        assert f"`{row['series_digest'][:12]}`" in text
    assert f"series `{made['series_digest'][:12]}`" in text
    for row in made["compiled"]:
        assert row["broken"] == []
    for row in made["built"]:
        assert row["kv_layers"] and row["vectors_hold"] and row["serves_mixed"]


def test_the_record_of_transforms_on_every_architecture() -> None:
    *rows, total = (ROOT / "benchmarks/results/kv-transform-archs.txt").read_text().splitlines()
    assert total == f"{len(rows)} architectures, 0 failed"
    same = [row for row in rows if "plain same" in row]
    refused, without = (
        [row for row in rows if row.endswith(words)] for words in ("refused", "keeps no keys")
    )
    assert len(same) + len(refused) + len(without) == len(rows)
    assert not any("DIFFERS" in row or "FAILED" in row for row in rows)
    said = (
        f"Of {len(rows)} architectures {len(same)} compute the same, {len(refused)} are refused and "
        f"{len(without)} keep no keys"
    )
    assert said in " ".join(document("transform.md").split())


def test_the_sanitizer_record() -> None:
    made, text = record("sanitize.json"), " ".join(document("patching.md").split())
    assert f"{len(made['findings'])} findings" in text
    assert made["tests"] in text
    assert made["tag"] == load_pin(patches_folder()).tag and "0006-kv-types" in made["patches"]
    assert f"`{made['tag']}`, series `{made['series_digest'][:12]}`" in text


def test_the_record_of_upstreams_own_test() -> None:
    made, text = record("backend-ops.json"), document("proofs.md")
    assert made["status"] == 0 and made["failed"] == []
    assert made["build"]["tag"] == load_pin(patches_folder()).tag
    attention = made["operations"]["FLASH_ATTN_EXT"]
    assert set(attention) == {"ok"}
    assert made["passed"] == made["run"] >= attention["ok"]
    assert f"All {made['passed']:,} cases passed, {attention['ok']:,} of them attention" in text


def test_the_record_of_what_could_go_upstream_alone() -> None:
    made, text = record("upstream-alone.json"), document("upstream/index.md")
    for row in made["patches"]:
        assert row["mixed_cache"]
        assert not any(suite["failed"] for suite in row["suites"])
        cells = (
            f"{row['patch']} `{row['digest'][:12]}`",
            *(f"{row[name]:,}" for name in ("n_files", "n_added", "n_removed")),
            row["tag"],
            f"{sum(suite['passed'] for suite in row['suites']):,} passed",
        )
        assert f"| {' | '.join(cells)} |" in text
    unproven = {piece.patch for piece in PIECES} - {row["patch"] for row in made["patches"]}
    assert all(f"{patch} has not been built alone yet" in text for patch in unproven)


@pytest.mark.parametrize(
    "name",
    ["rk3588.json", "patch-range.json", "sanitize.json", "backend-ops.json", "upstream-alone.json"],
)
def test_records_name_no_folder_of_the_machine_they_were_made_on(name: str) -> None:
    text = json.dumps(record(name))
    assert not any(part in text for part in ('"/home', '"/root', '"/work', '"/tmp'))
