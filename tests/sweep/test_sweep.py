"""Whole sweeps with a server that stands in: resumed, killed, refused; the same records from a cluster."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from command_line import KVQUANT
from evals.processes import assert_gone, fill_disk
from kvquant.cli.main import kvquant
from kvquant.errors import KVQuantError, UsageError
from kvquant.results.sweep import Ending
from kvquant.sweep.engine import Countdown, Here, left_of, sweep
from kvquant.sweep.journal import JOURNAL, open_journal, read_journal, start_of
from kvquant.sweep.plan import SweepPlan, tasks
from kvquant.sweep.survey import survey
from sweep.small_sweeps import BOARD, MODEL, PROBE, cell, fake_programs, journal_of, small_plan


def run(plan: SweepPlan, folder: Path, out: Path) -> dict[tuple[str, str], Any]:
    runner = Here(plan, survey(plan, fake_programs(folder), "board"))
    with open_journal(out, start_of(plan, runner.boards, ["kvquant"])) as writer:
        return dict(sweep(plan, runner, writer).records)


def test_records_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    records = run(small_plan(policies=("f16", "q4_0"), probe=PROBE), tmp_path, out)
    journal = read_journal(out)
    assert journal.records == records
    assert [record.ending for record in journal.cells] == [Ending.DONE, Ending.CRASHED]
    assert len(journal.probes) == 2
    assert journal.boards[0].models[0].bits_per_weight == pytest.approx(16, rel=0.02)


def test_a_sweep_goes_on_and_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, starts = tmp_path / "out", tmp_path / "starts"
    monkeypatch.setenv("FAKE_STARTS", str(starts))
    first = run(small_plan(policies=("f16",)), tmp_path, out)
    again = run(small_plan(policies=("f16",)), tmp_path, out)
    assert again == first
    assert len(starts.read_text().splitlines()) == 1
    more = run(small_plan(policies=("f16", "q8_0"), rounds=2), tmp_path, out)
    assert len(more) == 4 and {key: more[key] for key in first} == first
    assert len(starts.read_text().splitlines()) == 4


def test_another_way_of_measuring_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = small_plan(policies=("f16",))
    run(plan, tmp_path, out)
    other = replace(plan, measure=replace(plan.measure, n_gen=6))
    with pytest.raises(
        UsageError, match="contains a sweep with another way of measuring; give another --out"
    ):
        run(other, tmp_path, out)


def test_a_full_disk_loses_the_cell_that_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, plan = tmp_path / "out", small_plan()
    with monkeypatch.context() as patch:
        fill_disk(patch, at_call=3)
        with pytest.raises(KVQuantError, match="No space left on device; the 1 records before this are kept"):
            run(plan, tmp_path, out)
    # The line may be on the disk all the same: the disk did not say.
    assert len(read_journal(out).records) in (1, 2)
    assert len(run(plan, tmp_path, out)) == 2


def test_a_line_cut_off_is_one_cell(tmp_path: Path) -> None:
    out, plan = tmp_path / "out", small_plan()
    run(plan, tmp_path, out)
    journal = out / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    assert len(read_journal(out).records) == 1
    assert len(run(plan, tmp_path, out)) == 2


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    out, plan = tmp_path / "out", small_plan(policies=("f16",))
    run(plan, tmp_path, out)
    with (out / JOURNAL).open("a") as file:
        file.write('{"kind": "cell", "board": 7}\n')
    with pytest.raises(KVQuantError, match="line 3 is damaged"):
        read_journal(out)


def write_plan(folder: Path, **values: Any) -> Path:
    lines = {
        "models": [MODEL], "policies": ["f16", "q8_0"], "threads": [1], "ctx": [512], "rounds": 1, **values
    }  # fmt: skip
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in lines.items())
    measure = "depths = [0, 64]\nn_prompt = 64\nn_gen = 5\nwarmup = 8\ntimeout_seconds = 30.0"
    path = folder / "plan.toml"
    path.write_text(f"{text}\n[measure]\n{measure}\n")
    return path


def test_kill_nine_loses_one_cell_and_leaves_nothing_running(tmp_path: Path) -> None:
    # q5_0 never answers: the kill comes while its cell runs.
    plan = write_plan(tmp_path, policies=["f16", "q5_0"])
    programs, out = fake_programs(tmp_path), tmp_path / "out"
    argv = [*KVQUANT, "sweep", plan, "--out", out, "--llama-bin", programs]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while b'"kind": "cell"' not in ((out / JOURNAL).read_bytes() if (out / JOURNAL).exists() else b""):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert_gone(programs)
    records = read_journal(out).records
    assert [record.setting.policy for record in records.values()] == ["*:f16"]


def test_the_command(tmp_path: Path) -> None:
    plan, out = write_plan(tmp_path, policies=["f16", "q8_0", "q4_0"], ram=["1GiB"]), tmp_path / "out"
    argv = ["sweep", str(plan), "--out", str(out), "--llama-bin", str(fake_programs(tmp_path))]
    runner = CliRunner()
    dry = runner.invoke(kvquant, [*argv, "--dry-run"], catch_exceptions=False)
    assert dry.output.endswith("3 in all, 3 left\n") and not out.exists()
    shown = runner.invoke(kvquant, argv, catch_exceptions=False)
    assert "1 crashed" in shown.stdout and "fast answers" in shown.stdout
    assert "q4_0 threads=1" in shown.stderr and "GGML_ASSERT" in shown.stderr
    document = json.loads(runner.invoke(kvquant, [*argv, "--json"], catch_exceptions=False).stdout)
    assert [row["n_cells"] for row in document["rows"]] == [1, 1, 0]
    assert {path.name for path in out.iterdir()} >= {"sweep.jsonl", "sweep.json", "table.csv"}
    again = runner.invoke(kvquant, [*argv, "--dry-run"], catch_exceptions=False)
    assert again.output.endswith("3 in all, 0 left\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give a plan, or a model with --model"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", MODEL, "--flash-attn", "auto"], "write on, off or on,off"),
        (["--model", MODEL, "--threads", "two"], "whole numbers"),
        (["--model", MODEL, "--cpus", "4000-4001"], "this machine has no core 4000-4001"),
        (["--model", MODEL, "--ctx", "4k,4k"], "has a value twice"),
        (["--model", MODEL, "--ctx", "4q"], "not a number of tokens"),
    ],
)
def test_bad_input_is_said_before_anything_runs(arguments: list[str], says: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["sweep", *arguments, "--out", str(out), "--llama-bin", str(fake_programs(tmp_path))]
    with pytest.raises(KVQuantError, match=says):
        CliRunner().invoke(kvquant, argv, catch_exceptions=False)
    assert not out.exists()


def test_what_is_left_when_boards_share() -> None:
    plan = SweepPlan(models=("m",), policies=("f16", "q8_0"), threads=(1,), ctx=(512, 1024), rounds=1)
    everything = tasks(plan)
    journal = journal_of(cell())
    left = left_of(plan, (BOARD, replace(BOARD, name="c")), journal)
    # The block that b has begun stays with b; the other block is anybody's.
    assert [(board, task.key) for board, task in left] == [
        ("b", everything[1].key), (None, everything[2].key), (None, everything[3].key),
    ]  # fmt: skip


def test_what_is_left_when_each_board_runs_all() -> None:
    plan = SweepPlan(models=("m",), policies=("f16",), threads=(1,), ctx=(512,), rounds=1, boards="each")
    left = left_of(plan, (BOARD, replace(BOARD, name="c")), journal_of(cell()))
    assert [board for board, _ in left] == ["c"]


def test_a_lost_cell_is_run_again() -> None:
    journal = journal_of(cell(ending=Ending.LOST))
    assert journal.records == {}


def test_the_time_that_is_left() -> None:
    countdown = Countdown(4)
    assert countdown.line("x") == "0/4 x"
    countdown.n_done = 2
    assert countdown.line("x").endswith("0:00:00 left")
