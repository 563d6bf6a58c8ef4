"""Runs a program to its end (pip, git, cmake, ninja), its output in a log, and nothing left running."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvquant.errors import LlamaError
from kvquant.processes.background import BackgroundProgram

#: How often a running program's log is looked at, in seconds.
POLL_SECONDS = 0.1


def run_logged(
    argv: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> int:
    """Run ``argv`` with its output in the new file ``log``, give each line to ``on_line``; its exit status.

    ``env`` is added to the environment. The program ends with the caller, however the caller ends. Raises
    LlamaError when the log cannot be written; a program that is not there has status 127 and a line in it.
    """
    with BackgroundProgram(argv, log, env={**os.environ, **(env or {})}) as program:
        return follow(program, on_line)


def follow(
    program: BackgroundProgram,
    on_line: Callable[[str], None] | None,
    *,
    silence_seconds: float = math.inf,
) -> int:
    """Give each line of a running program to ``on_line`` until the program has ended; its exit status.

    Raises LlamaError when nothing is printed for ``silence_seconds``, as `Silence` counts them; the program
    then still runs.
    """
    unfinished = b""
    silence = Silence(time.monotonic(), program.cpu_seconds())
    with program.log.open("rb") as output:
        while True:
            status = program.exit_status()
            printed = output.read()
            *lines, unfinished = (unfinished + printed).split(b"\n")
            if status is not None and unfinished:
                lines.append(unfinished)
            for line in lines:
                if on_line is not None:
                    on_line(line.decode("utf-8", "replace").rstrip())
            if status is not None:
                return status
            now, used = time.monotonic(), program.cpu_seconds()
            if printed:
                silence = Silence(now, used)
            elif silence.seconds(now, used) > silence_seconds:
                raise LlamaError(
                    f"{program.argv[0]} has printed nothing for {silence_seconds:g} s (log: {program.log})"
                )
            time.sleep(POLL_SECONDS)


class Silence:
    """How long a program says nothing, without the time for which it only waits for a processor.

    A program that computes is silent for as long as it computes. One that gets little of a busy machine is
    not hung, however late it is; one that gets no processor time at all for as long is. cpu_seconds: None
    where that is not known; then every second counts.
    """

    def __init__(self, now: float, cpu_seconds: float | None) -> None:
        self._heard = self._advanced = now
        self._at_first = self._used = cpu_seconds

    def seconds(self, now: float, cpu_seconds: float | None) -> float:
        """Return the silence so far, with the processor time that the program has had by ``now``."""
        wall = now - self._heard
        if cpu_seconds is None or self._at_first is None or self._used is None:
            return wall
        if cpu_seconds > self._used:
            self._used, self._advanced = cpu_seconds, now
        return max(min(wall, cpu_seconds - self._at_first), now - self._advanced)


def run_captured(argv: Sequence[str], *, timeout_seconds: float = 60.0) -> tuple[int, str]:
    """Run ``argv``; its exit status and its standard output and error together.

    Raises LlamaError when it cannot be started or does not end in time.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LlamaError(
            f"{argv[0]} did not finish within {timeout_seconds:g} s; run it by hand to see why"
        ) from error
    except OSError as error:
        raise LlamaError(f"cannot run {argv[0]}: {error.strerror or error}") from error
    return done.returncode, done.stdout.decode("utf-8", "replace")
