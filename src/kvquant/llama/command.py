"""Runs a program to its end (pip, git, cmake, ninja), its output in a log, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kvquant.errors import LlamaError

#: How long a program gets to end by itself after SIGTERM.
GRACE_SECONDS = 5.0


def run_logged(
    argv: Sequence[str],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> int:
    """Run ``argv``, append its output to ``log`` line by line, give each line to ``on_line``; its exit
    status.

    ``env`` is added to the environment.  On any exception, an interrupt included, the program and what it
    started are ended first.  Raises LlamaError when the program cannot be started or the log cannot be
    written.
    """
    try:
        with log.open("ab") as log_file:
            log_file.write(f"$ {' '.join(argv)}\n".encode())
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            with process:
                try:
                    for line in process.stdout or ():
                        log_file.write(line)
                        if on_line is not None:
                            on_line(line.decode("utf-8", "replace").rstrip())
                    return process.wait()
                except BaseException:
                    _end_group(process)
                    raise
    except OSError as error:
        raise LlamaError(f"cannot run {argv[0]}: {error.strerror or error} (log: {log})") from error


def run_captured(
    argv: Sequence[str], *, cwd: Path | None = None, timeout_seconds: float = 60.0
) -> tuple[int, str]:
    """Run ``argv``; its exit status and its standard output and error together.

    Raises LlamaError when it cannot be started or does not end in time.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LlamaError(
            f"{argv[0]} did not end within {timeout_seconds:g} s; run it by hand to see why"
        ) from error
    except OSError as error:
        raise LlamaError(f"cannot run {argv[0]}: {error.strerror or error}") from error
    return done.returncode, done.stdout.decode("utf-8", "replace")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process group that ``run_logged`` started, gently first."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
            return
