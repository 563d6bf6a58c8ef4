"""Programs that run beside kvquant: started in a group of their own, ended with certainty, and only they.

Each runs under ``kvquant.processes.watchdog``, which ends it when kvquant closes its pipe: on purpose, on an
exception, or because kvquant was interrupted, terminated or killed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kvquant.errors import LlamaError

GRACE_SECONDS = 5.0
"""How long a program gets to end by itself before it is killed."""

_WATCHDOG = Path(__file__).with_name("watchdog.py")


class BackgroundProgram:
    """A running program whose output goes to a log file; as a context manager it ends with the block."""

    def __init__(
        self, argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Start ``argv`` with its standard output and error in ``log``.

        env: the whole environment, None for the caller's own. Raises LlamaError when the log cannot be
        written. A program that is not there ends with status 127 and a line in the log.
        """
        self.argv = tuple(argv)
        self.log = log
        try:
            with log.open("wb") as output:
                self._watchdog = subprocess.Popen(
                    # -I -S: nothing from the environment or site-packages can get in the watchdog's way.
                    [sys.executable, "-I", "-S", str(_WATCHDOG), str(GRACE_SECONDS), *argv],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=None if env is None else dict(env),
                    cwd=cwd,
                    start_new_session=True,
                )
        except OSError as error:
            raise LlamaError(f"cannot start {argv[0]}: {error.strerror} (log: {log})") from error

    def exit_status(self) -> int | None:
        """Return None while it runs, then its exit status, 128 + N when signal N ended it."""
        return self._watchdog.poll()

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Wait for its end and return its exit status; None when it still runs after ``timeout_seconds``."""
        try:
            return self._watchdog.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def peak_n_bytes(self) -> int | None:
        """Return the most memory it has had resident so far, mapped files included; None where unknown.

        VmHWM of /proc. Once the program has ended nobody knows it any more.
        """
        peak = re.search(r"^VmHWM:\s*(\d+) kB$", self._proc("status"), re.MULTILINE)
        return int(peak[1]) * 1024 if peak else None

    def cpu_seconds(self) -> float | None:
        """Return the processor time it has had so far, over all its threads; None where unknown or ended."""
        # proc(5): utime and stime are the 14th and 15th field; the name before them may hold anything.
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else None

    def _proc(self, name: str) -> str:
        """A file of /proc about the program, empty where there is none."""
        watchdog = self._watchdog.pid
        try:
            # Orphans of the program become the watchdog's children after it.
            pid = Path(f"/proc/{watchdog}/task/{watchdog}/children").read_text().split()[0]
            return Path(f"/proc/{pid}/{name}").read_text()
        except (OSError, IndexError):
            return ""

    def stop(self) -> None:
        """End the program and whatever it started, if it still runs, and wait until it is gone."""
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        self._watchdog.wait()

    def log_text(self) -> str:
        """Return what it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def clean_environment(**added: str) -> dict[str, str]:
    """Return the environment without llama.cpp's own variables, which would change what a run means.

    Every option of llama.cpp's programs can also come from a LLAMA_ARG_ variable; other LLAMA_ and GGML_
    variables switch the cache rotation, backends and more.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "GGML_"))}
    return {**kept, **added}
