"""Calls a function that a model wrote, in a process of its own with limits.

The right results stay here: the code never sees them. ``sandbox_runner`` says what confines it; the process
and whatever it starts end with the call, and with kvquant, however that ends (kvquant.processes.background).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from kvquant.errors import KVQuantError
from kvquant.processes.background import BackgroundProgram

CPU_SECONDS = 2
MEMORY_BYTES = 512 * 2**20
FILE_BYTES = 64 * 2**10
"""Also the most that the results may take as JSON."""

WALL_SECONDS = 20.0
"""Above CPU_SECONDS by far: a loaded machine must not turn a right answer into a wrong one."""

_POLL_SECONDS = 0.01
_RUNNER = Path(__file__).with_name("sandbox_runner.py")


class Failure(Enum):
    """Why there are no values. CODE: does not compile or define the function. CALL: the function raises, or
    returns what JSON cannot hold. LIMITS: it took too much time, memory or output, or ended the process.
    """

    CODE = "code"
    CALL = "call"
    LIMITS = "limits"


@dataclass(frozen=True)
class Called:
    """What each call returned, as JSON holds it, or None and why."""

    values: tuple[Any, ...] | None
    failure: Failure | None = None
    detail: str = ""


def call_function(
    code: str, function: str, calls: Sequence[Sequence[Any]], wall_seconds: float = WALL_SECONDS
) -> Called:
    """Run ``code`` and return what ``function`` returns for each list of arguments (JSON values)."""
    job = {"code": code, "function": function, "calls": [list(arguments) for arguments in calls]}
    with tempfile.TemporaryDirectory(prefix="kvquant-sandbox-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        inside = folder / "inside"
        try:
            inside.mkdir()
            (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        except OSError as error:
            raise KVQuantError(f"cannot make a sandbox in {folder}: {error.strerror}") from error
        limits = (str(CPU_SECONDS), str(MEMORY_BYTES), str(FILE_BYTES))
        argv = [sys.executable, "-I", "-S", str(_RUNNER), str(folder / "job.json"), *limits]
        with BackgroundProgram(argv, folder / "output", env={}, cwd=inside) as program:
            deadline = time.monotonic() + wall_seconds
            while (status := program.exit_status()) is None and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        if status is None:
            return Called(None, Failure.LIMITS, f"did not finish within {wall_seconds:g} s")
        return _result(program.log_text(), status)


def _result(output: str, status: int) -> Called:
    try:
        result = json.loads(output)
    except ValueError:
        return Called(None, Failure.LIMITS, f"ended with status {status} and without a result")
    if "values" in result:
        return Called(tuple(result["values"]))
    return Called(None, Failure(result["failure"]), str(result["detail"]))
