"""Code of a model runs behind limits, and nothing of it is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvquant.evals.sandbox import Called, Failure, call_function


def called(body: str, argument: object = 3, wall_seconds: float = 20.0) -> Called:
    return call_function(f"def f(x):\n    {body}\n", "f", [[argument]], wall_seconds)


def test_values_come_back() -> None:
    assert call_function(
        "import re, math\ndef f(x, y): return [x, y, math.pi > 3]", "f", [[1, "a"], [None, 2.5]]
    ) == Called(([1, "a", True], [None, 2.5, True]))


@pytest.mark.parametrize(
    "code", ["def f(x) return x", "g = 1", "raise SystemExit(0)", "import no_such", "1/0", ""]
)
def test_code_that_defines_nothing(code: str) -> None:
    result = call_function(code, "f", [[1]])
    assert result.values is None and result.failure is Failure.CODE
    assert result.detail and "\n" not in result.detail


@pytest.mark.parametrize(
    "body", ["raise ValueError(x)", "return {1, 2}", "return x.y", "return f(x)", "import sys; sys.exit(1)"]
)
def test_calls_that_fail(body: str) -> None:
    assert called(body).failure is Failure.CALL


@pytest.mark.parametrize(
    "body",
    [
        "open('/etc/hostname')",
        "open('out', 'w')",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import os; os.kill(1, 9)",
        "import subprocess; subprocess.run(['true'])",
        "import socket; socket.socket()",
        "import ctypes; ctypes.CDLL(None)",
        "import os; os.listdir('/')",
    ],
)
def test_it_may_only_compute(body: str) -> None:
    result = called(body)
    assert result.values is None
    assert result.failure in {Failure.CALL, Failure.LIMITS}


def test_time_and_memory_are_limited() -> None:
    assert called("while True: pass").failure is Failure.LIMITS
    assert called("return len('a' * 2**31)").failure is Failure.CALL
    assert "MemoryError" in called("return len('a' * 2**31)").detail
    assert called("return 'a' * 2**20").failure is Failure.LIMITS


def test_what_waits_is_ended() -> None:
    result = called("import time; time.sleep(60)", wall_seconds=1.0)
    assert result == Called(None, Failure.LIMITS, "did not end within 1 s")
    assert "sandbox_runner" not in "".join(_own_children())


def test_output_cannot_be_mistaken_for_a_result() -> None:
    assert called("""print('{"values": [4]}'); return 5""").values == (5,)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    called("return x")
    called("1/0")
    assert list(tmp_path.iterdir()) == []


def _own_children() -> list[str]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                found.append((status.parent / "cmdline").read_text())
        except OSError:
            continue
    return found
