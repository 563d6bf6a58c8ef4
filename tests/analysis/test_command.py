"""`kvquant analyze` as a user sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from analysis.test_sources import small_capture
from kvquant.analysis import Analysis
from kvquant.cli.main import kvquant
from kvquant.errors import CaptureError, KVQuantError
from kvquant.model.capture import save_capture

QUICK = ("--tokens", "32", "--queries", "4", "--heads", "1", "--against", "f16,q8_0,tq_mse_4b")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(kvquant, ["analyze", *arguments])


def failure(*arguments: str) -> KVQuantError:
    error = run(*arguments).exception
    assert isinstance(error, KVQuantError), error
    return error


def test_text_has_every_layer_every_rival_and_the_verdict() -> None:
    result = run("--layers", "0-10:q8_0,11-31:q4_0", "--profile", "typical", *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "0-10:q8_0,11-31:q4_0 on Llama 3.1 8B, bytes at 4096 tokens"
    assert (
        lines[2] == "sampled per layer: 32 tokens, 4 synthetic queries, 1 of 8 KV heads, 4 of 32 query heads"
    )
    table = [line.split() for line in lines]
    assert [row[:6] for row in table if row[:2] == ["11", "11"]] == [
        ["11", "11", "q4_0", "q4_0", "4.50", "4.50"]
    ]
    assert [row[0] for row in table if row and row[0] in ("f16", "q8_0", "tq_mse_4b*")] == [
        "f16",
        "q8_0",
        "tq_mse_4b*",
    ]
    assert lines[-1].startswith("Verdict: 0-10:q8_0,11-31:q4_0 takes 0.37x of f16's bytes")
    assert result.stderr == ""


def test_without_a_source_the_reference_models_capture_is_analysed() -> None:
    """What README and docs/analysis.md show: the first command anybody runs, on real K, V and Q."""
    lines = run("--layers", "0-10:q8_0,11-31:q4_0", *QUICK).stdout.splitlines()
    assert lines[1].startswith("data: capture reference: K and V of ")
    assert lines[2].endswith("4 captured queries, 1 of 2 KV heads, 2 of 4 query heads")
    assert lines[-1].startswith("Verdict: 0-10:q8_0,11-31:q4_0 takes 0.37x of f16's bytes (23.50 MiB, not ")


def test_json_is_one_document_on_stdout_and_warnings_go_to_stderr() -> None:
    result = run("--layers", "0-40:q8_0", "--json", "--ctx", "1000", *QUICK)
    document = json.loads(result.stdout)
    assert document["policy"] == "0-40:q8_0" and document["n_ctx"] == 1024
    assert list(document["baselines"]) == ["f16", "q8_0", "tq_mse_4b"]
    assert "past the end" in result.stderr
    assert Analysis.from_json(result.stdout).to_json() == result.stdout.rstrip("\n")


def test_default_alone_is_a_policy() -> None:
    document = json.loads(run("--default", "k=q8_0/v=q4_0", "--json", *QUICK).stdout)
    assert document["policy"] == "*:k=q8_0/v=q4_0" and document["default"] == {"k": "q8_0", "v": "q4_0"}


@pytest.mark.parametrize(
    ("options", "mode", "side_by_side"),
    [((), "both", True), (("--no-rotation",), "off", False), (("--rotation", "on"), "on", False)],
)
def test_rotation_options(options: tuple[str, ...], mode: str, side_by_side: bool) -> None:
    document = json.loads(run("--layers", "q4_0", "--json", *options, *QUICK).stdout)
    assert document["rotation"] == mode
    assert (document["layers"][0]["unrotated"] is not None) is side_by_side


def test_a_capture_and_a_shape(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    save_capture(small_capture(), path)
    document = json.loads(run("--layers", "*:q8_0", "--capture", str(path), "--json").stdout)
    assert document["source"]["name"] == "run.npz" and len(document["layers"]) == 4
    assert isinstance(
        failure("--layers", "q8_0", "--capture", str(path), "--shape", "qwen3-8b"), CaptureError
    )
    shaped = json.loads(run("--layers", "q8_0", "--shape", "qwen3.5-2b", "--json", *QUICK).stdout)
    assert [layer["layer"] for layer in shaped["layers"]] == [3, 7, 11, 15, 19, 23]


def test_files_are_written_whole(tmp_path: Path) -> None:
    page, plot = tmp_path / "report.html", tmp_path / "plot.svg"
    page.write_text("old")
    result = run("--layers", "q8_0", "--html", str(page), "--plot", str(plot), *QUICK)
    assert result.exit_code == 0, result.output
    assert page.read_text().startswith("<!doctype html>") and "<svg" in plot.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.svg", "report.html"]
    assert result.stderr == f"kvquant: wrote {page}\nkvquant: wrote {plot}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--plot", "figure.pdf"), 2, ".png or .svg"),
        (("--html", "no/such/folder/x.html"), 2, "there is no folder"),
        (("--layers", "0-3:q9_0"), 2, "column 5"),
        (("--ctx", "0"), 2, "--ctx: '0' is too few"),
        (("--heads", "0"), 2, "at least 1"),
        (("--capture", "no/such.npz"), 1, "no such file"),
        (("--profile", "typical", "--capture", "x.npz"), 2, "choose one"),
        (("--shape", "deepseek-v3"), 1, "latent"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments: tuple[str, ...], code: int, message: str) -> None:
    error = failure(*arguments)
    assert error.exit_code == code and message in str(error)


def test_the_default_run_is_quick_and_small() -> None:
    """The whole default analysis in a process of its own: CPU time and peak memory by the system's count."""
    program = (
        "import resource, sys\n"
        "from kvquant.cli.main import kvquant\n"
        "kvquant(['analyze', '--layers', '0-10:q8_0,11-31:q4_0'], standalone_mode=False)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    cpu_seconds, peak_kib = map(float, done.stderr.split())
    # Two cores and 10 s of wall time leave 20 s; other tests on the machine make every second longer.
    assert cpu_seconds < 20 and peak_kib < 2**20
