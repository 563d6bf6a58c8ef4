"""A program started by kvquant never outlives it, and its end is reported as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvquant.errors import LlamaError
from kvquant.processes.background import BackgroundProgram, clean_environment

# Prints its own pid and that of a child that would run for long, and waits.
SPAWNS_A_CHILD = (
    "import os, subprocess, sys, time\n"
    "child = subprocess.Popen(['sleep', '600'])\n"
    "print(os.getpid(), child.pid, flush=True)\n"
    "time.sleep(600)\n"
)


def _pids(log: Path, count: int = 2) -> list[int]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if log.exists() and len(words := log.read_text().split()) >= count:
            return [int(word) for word in words]
        time.sleep(0.02)
    raise AssertionError(f"no pids in {log}")


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {[pid for pid in pids if _is_running(pid)]}"
        time.sleep(0.02)


def test_leaving_the_block_ends_the_program_and_its_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with BackgroundProgram([sys.executable, "-c", SPAWNS_A_CHILD], log) as program:
        pids = _pids(log)
        assert all(_is_running(pid) for pid in pids)
        assert program.exit_status() is None
    assert not any(_is_running(pid) for pid in pids)
    assert program.exit_status() == 128 + signal.SIGTERM
    program.stop()


def test_an_exception_ends_it_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt), BackgroundProgram([sys.executable, "-c", SPAWNS_A_CHILD], log):
        pids = _pids(log)
        raise KeyboardInterrupt
    assert not any(_is_running(pid) for pid in pids)


def test_children_left_behind_are_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    with BackgroundProgram([sys.executable, "-c", code], log) as program:
        [pid] = _pids(log, count=1)
        while program.exit_status() is None:
            time.sleep(0.02)
        assert program.exit_status() == 0
        assert not _is_running(pid)


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvquant.processes.background.GRACE_SECONDS", 0.2)
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(600)\n"
    )
    log = tmp_path / "log"
    with BackgroundProgram([sys.executable, "-c", code], log) as program:
        [pid] = _pids(log, count=1)
    assert program.exit_status() == 128 + signal.SIGKILL
    assert not _is_running(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_ends_when_its_starter_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    code = (
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "from kvquant.processes.background import BackgroundProgram\n"
        # Whoever runs the tests may ignore these, as nohup does, and what is ignored is inherited.
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"with BackgroundProgram([sys.executable, '-c', {SPAWNS_A_CHILD!r}], Path({str(log)!r})):\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as starter:
        try:
            pids = _pids(log)
            starter.send_signal(number)
            starter.wait(timeout=20)
        finally:
            starter.kill()
        _assert_gone(pids)


def test_it_ends_when_its_watchdog_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with BackgroundProgram([sys.executable, "-c", SPAWNS_A_CHILD], log):
        program, child = _pids(log)
        stat = Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()
        os.kill(int(stat[1]), signal.SIGKILL)
        _assert_gone([program])
        # Nothing watched the child any more; the test cleans up after itself.
        os.kill(child, signal.SIGKILL)


def test_waiting_ends_with_the_program_or_the_time(tmp_path: Path) -> None:
    with BackgroundProgram([sys.executable, "-c", "raise SystemExit(7)"], tmp_path / "log") as program:
        assert program.wait() == 7 and program.wait(0) == 7
    with BackgroundProgram(["sleep", "600"], tmp_path / "log") as program:
        assert program.wait(0.05) is None and program.exit_status() is None


def test_peak_memory_is_that_of_the_program_while_it_runs(tmp_path: Path) -> None:
    code = "x = b'1' * 2**26; del x; print(1, flush=True); import time; time.sleep(600)"
    with BackgroundProgram([sys.executable, "-c", code], tmp_path / "log") as program:
        _pids(tmp_path / "log", 1)
        peak = program.peak_n_bytes()
        # 64 MiB that it no longer has; its watchdog never had them.
        assert peak is not None and 2**26 < peak < 2**28
    assert program.peak_n_bytes() is None


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(0)", 0), ("raise SystemExit(7)", 7)])
def test_exit_status_and_output(tmp_path: Path, code: str, status: int) -> None:
    with BackgroundProgram([sys.executable, "-c", f"print('so'); {code}"], tmp_path / "log") as program:
        while program.exit_status() is None:
            time.sleep(0.02)
        assert program.exit_status() == status
        assert program.log_text() == "so\n"


def test_a_missing_program_says_so_in_its_log(tmp_path: Path) -> None:
    with BackgroundProgram(["/nonexistent/program"], tmp_path / "log") as program:
        while program.exit_status() is None:
            time.sleep(0.02)
        assert program.exit_status() == 127
        assert "cannot start /nonexistent/program" in program.log_text()


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LlamaError, match="cannot start true"):
        BackgroundProgram(["true"], tmp_path / "none" / "log")


def test_llama_variables_do_not_leak_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "64")
    monkeypatch.setenv("GGML_VERBOSE", "1")
    monkeypatch.setenv("KEPT", "1")
    environment = clean_environment(LLAMA_ARG_THREADS="1")
    assert "LLAMA_ARG_CTX_SIZE" not in environment and "GGML_VERBOSE" not in environment
    assert environment["KEPT"] == "1" and environment["LLAMA_ARG_THREADS"] == "1"
