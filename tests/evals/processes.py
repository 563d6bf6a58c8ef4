"""Which programs work in a folder, by their command lines, and a disk that is full."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest


def processes_of(folder: Path) -> list[int]:
    """The running programs, kvquant and its watchdogs left out, with ``folder`` in an argument."""
    return [pid for pid in map(int, _numbers()) if pid != os.getpid() and _names(pid, folder)]


def assert_gone(folder: Path, seconds: float = 15.0) -> None:
    """No such program is left, or will be in a moment."""
    deadline = time.monotonic() + seconds
    while found := processes_of(folder):
        assert time.monotonic() < deadline, f"still running: {found}"
        time.sleep(0.02)


def fill_disk(monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
    """Let the ``at_call``-th fsync find the disk full; those before and after it work."""
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == at_call:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def _numbers() -> list[str]:
    return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _names(pid: int, folder: Path) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    ours = any(part.endswith("watchdog.py") for part in arguments) or "kvquant" in arguments
    return not ours and any(str(folder) in argument for argument in arguments)
