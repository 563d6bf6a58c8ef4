"""Running a program to its end: every line is seen, the status is its own, the log holds all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvquant.errors import LlamaError
from kvquant.processes.command import Silence, run_captured, run_logged


def test_lines_status_and_log(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('one'); print('two', file=sys.stderr); print('no newline', end=''); sys.exit(7)"
    status = run_logged([sys.executable, "-u", "-c", code], tmp_path / "log", on_line=lines.append)
    assert (status, lines) == (7, ["one", "two", "no newline"])
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nno newline"


def test_the_environment_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVQUANT_TEST_A", "a")
    lines: list[str] = []
    code = "import os; print(os.environ['KVQUANT_TEST_A'] + os.environ['KVQUANT_TEST_B'])"
    run_logged(
        [sys.executable, "-c", code], tmp_path / "log", env={"KVQUANT_TEST_B": "b"}, on_line=lines.append
    )
    assert lines == ["ab"]


def test_what_cannot_be_run(tmp_path: Path) -> None:
    assert run_logged(["/nonexistent/program"], tmp_path / "log") == 127
    assert "cannot start /nonexistent/program" in (tmp_path / "log").read_text()
    with pytest.raises(LlamaError, match="cannot run /nonexistent/program: No such file or directory"):
        run_captured(["/nonexistent/program"])
    with pytest.raises(LlamaError, match=r"did not finish within 0\.1 s"):
        run_captured(["sleep", "5"], timeout_seconds=0.1)


def test_silence_of_a_program_that_computes_and_of_one_that_hangs() -> None:
    busy, two_threads, hung, unknown = Silence(0, 0), Silence(0, 1), Silence(0, 1), Silence(0, None)
    for now in range(0, 101, 10):
        assert busy.seconds(now, now) == now
        assert two_threads.seconds(now, 1 + 2 * now) == now
        assert hung.seconds(now, 1) == now
        assert unknown.seconds(now, None) == unknown.seconds(now, 5) == now


def test_a_program_that_waits_for_a_processor_is_not_silent() -> None:
    starved = Silence(0, 3)
    found = [starved.seconds(now, 3 + now / 100) for now in range(0, 5001, 10)]
    assert max(found) == 50
    # Once it hangs, every second counts from the last one in which it computed.
    assert starved.seconds(5400, 53) == 400
