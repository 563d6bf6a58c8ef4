"""Runs one program and makes sure that it does not outlive whoever asked for it.

Started by ``kvquant.processes.background`` as a program of its own, by path, with the standard library only:

    watchdog.py GRACE_SECONDS PROGRAM [ARGUMENT...]

Standard input is a pipe whose other end the caller holds and never writes to. It closes when the caller
closes it or dies, however it dies; the program's process group then gets SIGTERM and, after the grace time,
SIGKILL. The exit status is the program's own, 128 + N when signal N ended it, 127 when it did not start.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(grace_seconds: float, argv: list[str]) -> int:
    """Run ``argv`` until it ends or standard input closes; return its exit status."""
    libc = ctypes.CDLL(None)

    def prctl(option: int, value: int) -> None:
        # Linux only; elsewhere the call is not there and what it adds is missing.
        with contextlib.suppress(AttributeError):
            libc.prctl(option, value)

    def die_with_the_watchdog() -> None:
        # Against a SIGKILL of the watchdog itself.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    # What the program leaves behind becomes the watchdog's child, so that its end can be waited for.
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        # No thread runs yet, so preexec_fn is safe here.
        program = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=die_with_the_watchdog
        )
    except OSError as error:
        print(f"cannot start {argv[0]}: {error.strerror}", file=sys.stderr)
        return 127

    ended = threading.Event()
    lock = threading.Lock()

    def signal_group(number: int) -> None:
        with lock, contextlib.suppress(ProcessLookupError):
            # The program is not reaped before ``ended`` is set, so its group's number is still its own.
            if not ended.is_set():
                os.killpg(program.pid, number)

    def end_when_the_caller_is_gone() -> None:
        sys.stdin.buffer.read()
        signal_group(signal.SIGTERM)
        if not ended.wait(grace_seconds):
            signal_group(signal.SIGKILL)

    threading.Thread(target=end_when_the_caller_is_gone, daemon=True).start()
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    # What the program started and left behind goes with it.
    signal_group(signal.SIGKILL)
    with lock:
        ended.set()
    status = program.wait()
    # A killed process is gone only once it is reaped; until then it may still hold its port and its memory.
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-program.pid, 0)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    # Straight out: the thread may hold standard input's lock, which an orderly exit would wait for.
    sys.stderr.flush()
    os._exit(main(float(sys.argv[1]), sys.argv[2:]))
