"""Code of a model runs behind limits, and nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvquant.evals import sandbox_runner
from kvquant.evals.sandbox import Called, Failure, call_function

RUNNER = Path(sandbox_runner.__file__)


def called(body: str, argument: object = 3, wall_seconds: float = 20.0) -> Called:
    return call_function(f"def f(x):\n    {body}\n", "f", [[argument]], wall_seconds)


def test_values_come_back() -> None:
    assert call_function(
        "import re, math\ndef f(x, y): return [x, y, math.pi > 3]", "f", [[1, "a"], [None, 2.5]]
    ) == Called(([1, "a", True], [None, 2.5, True]))


def test_common_modules_can_be_imported() -> None:
    code = """from __future__ import annotations
import bisect, collections, copy, datetime, functools, itertools
import math, operator, random, re, string, unicodedata
from dataclasses import dataclass
from typing import List
def f(values: List[int]) -> List[int]:
    return copy.copy(values)"""
    assert call_function(code, "f", [[[1]]]).values == ([1],)


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


def test_what_waits_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = called("import time; time.sleep(60)", wall_seconds=1.0)
    assert result == Called(None, Failure.LIMITS, "did not finish within 1 s")
    assert not running(str(tmp_path))


def test_output_cannot_be_mistaken_for_a_result() -> None:
    assert called("""print('{"values": [4]}'); return 5""").values == (5,)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    called("return x")
    called("1/0")
    assert list(tmp_path.iterdir()) == []


WITHOUT_THE_HOOK = """
import encodings.idna, importlib.util, sys
spec = importlib.util.spec_from_file_location("runner", sys.argv[1])
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)
import os, socket
sys.addaudithook = lambda hook: None
runner.confine(2, 512 * 2**20, 64 * 2**10)
try:
    exec(sys.argv[2])
except (OSError, MemoryError) as error:
    print("refused", type(error).__name__)
else:
    print("done")
"""


def without_the_hook(code: str, cwd: Path) -> str:
    """Run code behind the limits alone."""
    argv = [sys.executable, "-I", "-S", "-c", WITHOUT_THE_HOOK, str(RUNNER), code]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or f"ended with {done.returncode}"


def test_the_limits_hold_without_the_hook(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("secret")
    (tmp_path / "mine").chmod(0o600)
    assert without_the_hook("1 + 1", tmp_path) == "done"
    assert without_the_hook("os.fork()", tmp_path) == "refused BlockingIOError"
    assert without_the_hook("bytearray(2**30)", tmp_path) == "refused MemoryError"
    assert without_the_hook("while True: pass", tmp_path) == f"ended with {-signal.SIGKILL}"
    tmp_path.chmod(0o777)
    big = without_the_hook("with open('big', 'wb', 0) as f:\n  while True: f.write(bytes(4096))", tmp_path)
    assert big == "refused OSError"
    if os.geteuid() == 0:
        assert without_the_hook("open('mine')", tmp_path) == "refused PermissionError"


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_no_network_without_the_hook(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--user", "--net", "true"], check=False).returncode:
        pytest.skip("this machine allows no name space of one's own")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert without_the_hook(f"socket.create_connection(('127.0.0.1', {port}), 5)", tmp_path) == (
            "refused OSError"
        )


def test_kill_9_of_kvquant_ends_the_code_too(tmp_path: Path) -> None:
    program = "from kvquant.evals.sandbox import call_function as c\n"
    program += "c('import time\\ndef f(): time.sleep(120)', 'f', [[]], 100)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    harness = subprocess.Popen([sys.executable, "-c", program], env=environment)
    wait_until(lambda: len(running(str(tmp_path))) >= 2)
    harness.kill()
    harness.wait()
    wait_until(lambda: not running(str(tmp_path)))


def running(mark: str) -> list[str]:
    """The command lines of processes that name ``mark``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_text()
        except OSError:
            continue
        if mark in text:
            found.append(text)
    return found


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
