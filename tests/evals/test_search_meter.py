"""`kvquant search --text` on a stand-in for the program: end to end, killed, on a full disk, bad inputs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from command_line import KVQUANT
from evals.processes import assert_gone, fill_disk
from kvquant.analysis.sources import DEFAULT_CAPTURE
from kvquant.cli.main import kvquant
from kvquant.errors import KVQuantError, LlamaError, UsageError
from kvquant.evals.divergence import CacheSetup
from kvquant.evals.search_journal import ChunkSums, open_journal
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import open_model
from kvquant.policy import parse_policy
from kvquant.schemas import schema_text

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "eval/reference-model/kvquant-reference-f16.gguf"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "fake.py"
    script.write_text((HERE / "fake_divergence_by_costs.py").read_text())
    program = folder / "llama-kv-divergence"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    for name in ("fit", "held-out"):
        (tmp_path / name).write_text(f"the {name} text")
    return folder


def settings(programs: Path, **values: float) -> None:
    (programs / "settings.json").write_text(json.dumps(values))


def arguments(programs: Path, *more: str, budget: str | None = "0.32x") -> list[str]:
    folder = programs.parent
    fixed = [
        "search",
        "--model",
        str(MODEL),
        "--text",
        str(folder / "fit"),
        "--held-out",
        str(folder / "held-out"),
    ]
    fixed += [
        "--llama-bin",
        str(programs),
        "--chunk",
        "256",
        "--tokens",
        "191",
        "--random",
        "3",
        "--ctx",
        "1024",
        "--types",
        "q8_0,q4_0",
    ]
    return [*fixed, *([] if budget is None else ["--budget", budget]), *more]


def run(programs: Path, *more: str, budget: str | None = "0.32x") -> Result:
    return CliRunner().invoke(kvquant, arguments(programs, *more, budget=budget))


def failure(result: Result, kind: type[KVQuantError]) -> str:
    assert isinstance(result.exception, kind), (result.exception, result.output)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_a_search_end_to_end(programs: Path, tmp_path: Path) -> None:
    out, preset = tmp_path / "out", tmp_path / "presets.ini"
    done = run(programs, "--out", str(out), "--preset-file", str(preset), "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert {"policy", "kv_bytes", "of_f16", "kl_fit", "kl_held_out", "rivals"} <= set(found)
    assert found == json.loads((out / "search.json").read_text())
    jsonschema.validate(found, json.loads(schema_text("search")))
    assert found["of_f16"] <= 0.32 and parse_policy(found["policy"]).resolve(
        shape_of(open_model(MODEL))
    ).layers[0].k_type in ("q8_0", "f16")
    assert found["against"]["verdict"] == "better" and found["simple"] is None
    assert found["floor"]["mean"] == pytest.approx(0.002, rel=0.01)
    assert found["additivity"]["ratio"] == pytest.approx(1, abs=0.2)
    assert found["random"]["n"] == 3
    page = (out / "search.html").read_text()
    assert "<script" not in page and page.count("<svg") == 6 and found["policy"] in page
    lines = preset.read_text().splitlines()
    assert f"kv-layers = {found['policy']}" in lines and "[kvquant-reference-f16]" in lines
    again = run(programs, "--out", str(out))
    assert again.exit_code == 0 and "measurements of" not in again.stderr
    assert again.stdout.splitlines()[0] == found["policy"] and "better than the best rival" in again.stdout


def test_a_search_by_a_limit_of_kl_and_by_memory(programs: Path) -> None:
    done = run(programs, "--max-kl", "0.05", "--json", budget=None)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kl_fit"]["mean"] <= 0.05
    done = run(programs, "--ram", "40MiB", "--json", budget=None)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["budget_bytes"] < 40 * 2**20 - MODEL.stat().st_size


def test_killed_it_loses_nothing_that_was_measured(programs: Path, tmp_path: Path) -> None:
    settings(programs, seconds=0.02)
    out, journal = tmp_path / "out", tmp_path / "out" / "fit.jsonl"
    command = [*KVQUANT, *arguments(programs, "--out", str(out))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as program:
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.01)
        program.kill()
        program.communicate()
    assert_gone(tmp_path)
    before = journal.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    settings(programs)
    assert run(programs, "--out", str(out)).exit_code == 0
    assert journal.read_bytes().startswith(before)
    whole = tmp_path / "whole"
    assert run(programs, "--out", str(whole)).exit_code == 0
    assert (
        json.loads((whole / "search.json").read_text())["policy"]
        == json.loads((out / "search.json").read_text())["policy"]
    )


def test_a_program_that_dies_and_a_full_disk_keep_what_is_measured(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    settings(programs, kill_after=20)
    assert "llama-kv-divergence ended" in failure(run(programs, "--out", str(out)), LlamaError)
    n_lines = (out / "fit.jsonl").read_text().count("\n")
    assert n_lines == 21  # the floor, and what came before the end
    settings(programs)
    fill_disk(monkeypatch, at_call=9)
    message = failure(run(programs, "--out", str(out)), KVQuantError)
    assert "No space left on device" in message and "measurements before this are kept" in message
    monkeypatch.undo()
    assert (out / "fit.jsonl").read_text().count("\n") > n_lines
    assert run(programs, "--out", str(out)).exit_code == 0


@pytest.mark.parametrize(
    ("values", "more", "budget", "kind", "message"),
    [
        (
            {},
            (),
            "0.25x",
            UsageError,
            "a budget of 4.00 MiB is below 4.50 MiB, the smallest size with these types",
        ),
        ({}, (), None, UsageError, "give one of --budget SIZE|SHARE, --max-kl NATS and --ram SIZE"),
        ({}, ("--max-kl", "0.1"), "0.3x", UsageError, "give one of --budget"),
        ({}, ("--ram", "1MiB"), None, UsageError, "leaves nothing beside weights of"),
        ({}, ("--max-kl", "0.001"), None, UsageError, "the difference of a float16 cache from itself"),
        ({"n_chunks": 2}, ("--tokens", "800"), "0.3x", UsageError, "has 2 of the 5 chunks of 256 tokens"),
        ({}, ("--chunk", "128"), "0.3x", UsageError, "too few for an interval"),
        ({"floor": 0.3}, (), "0.3x", LlamaError, "is 0.3 nats a token from itself with a float16 cache"),
        ({}, ("--quick",), "0.3x", UsageError, "--quick chooses from a capture; give --capture FILE"),
        (
            {},
            ("--types", "q9_0,q4_0"),
            "0.3x",
            UsageError,
            "--types q9_0: not a cache type of llama.cpp; known: f32",
        ),
        ({}, ("--text", "/nonexistent.txt"), "0.3x", UsageError, "--text /nonexistent.txt: no such file"),
    ],
)
def test_what_will_not_do_is_one_line(
    programs: Path,
    values: dict[str, float],
    more: tuple[str, ...],
    budget: str | None,
    kind: type[KVQuantError],
    message: str,
) -> None:
    settings(programs, **values)
    assert message in failure(run(programs, *more, budget=budget), kind)


def test_the_text_that_is_fitted_on_is_not_held_out(programs: Path) -> None:
    same = str(programs.parent / "fit")
    assert "is also the fitting text" in failure(run(programs, "--held-out", same), UsageError)


def test_a_folder_is_of_one_search(programs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(programs, "--out", str(out)).exit_code == 0
    # Another budget, other types and more text go on with what is there.
    assert run(programs, "--out", str(out), budget="0.4x").exit_code == 0
    assert "another chunk; give another --out" in failure(
        run(programs, "--out", str(out), "--chunk", "512"), UsageError
    )
    (tmp_path / "fit").write_text("another text")
    assert "another text; give another --out" in failure(run(programs, "--out", str(out)), UsageError)


def test_without_a_text_only_a_budget_is_taken() -> None:
    for more in (("--quick", "--budget", "0.3x"), ("--max-kl", "0.1"), ("--out", "x", "--budget", "0.3x")):
        result = CliRunner().invoke(kvquant, ["search", *more])
        assert "without --text only --budget works" in failure(result, UsageError)


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        '{"policy": "0:q8_0", "rotation": true, "path": "prefill", "chunk": 1, "sums": [1], "counts": [8]}',
        '{"policy": "0:q8_0", "rotation": true, "path": "prefill", "chunk": 0, "sums": [-1], "counts": [8]}',
        '{"policy": "0:q8_0", "rotation": true, "path": "prefill", "chunk": 0, "sums": [], "counts": []}',
        '{"policy": "0:q8_0", "rotation": true, "path": "prefill", "chunk": 0, "sums": [1], "counts": [0]}',
        '{"policy": "0:q8_0", "rotation": 1, "path": "prefill", "chunk": 0, "sums": [1], "counts": [8]}',
        '{"policy": 1, "rotation": true, "path": "prefill", "chunk": 0, "sums": [1], "counts": [8]}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal"
    path.write_text(line + "\n")
    with pytest.raises(KVQuantError, match="line 1 is damaged"), open_journal(path):
        pass
    assert path.read_text() == line + "\n"


def test_a_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    setup = CacheSetup(str(parse_policy("0:k=q8_0")))
    chunk = ChunkSums((0.25, 1e-9, 0.0), (8, 8, 15))
    with open_journal(path) as journal:
        journal.append(setup, chunk)
    with path.open("ab") as file:
        file.write(b'{"policy": "cut o')
    with open_journal(path) as journal:
        assert journal.chunks(setup) == [chunk]
        assert journal.chunks(setup.on_the_other_path()) == ()


def test_quick_measures_no_side_and_a_capture_adds_its_rivals(programs: Path) -> None:
    done = run(programs, "--quick", "--capture", DEFAULT_CAPTURE, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["costs_from"] == "capture" and all(side["kl"] is None for side in found["sides"])
    assert -1 <= found["proxy_rank_correlation"] <= 1
    assert "KVTuner's pairs" in {rival["name"] for rival in [*found["rivals"], *found["left_out"]]}
    assert "one side at a time" not in done.stderr
    measured = json.loads(run(programs, "--capture", DEFAULT_CAPTURE, "--json").stdout)
    assert measured["costs_from"] == "measurement" and measured["proxy_rank_correlation"] is not None
