"""Runs a patch operation again and again, striking it down at its 1st, 2nd, ... file operation (a script of
the tests).

    struck_down.py BLOW OPERATION TREE PATCHES WORK

copies TREE to WORK/1, WORK/2, ... and in a process of its own applies or reverts there, with BLOW at file
operation N: ``kill`` (SIGKILL, as by a power switch), ``full`` (the operation fails: no space left),
``interrupt`` (Ctrl-C). It ends after the first copy that is done before operation N comes; every run's
outcome is one line of output.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from pathlib import Path

from kvquant.errors import LlamaError
from kvquant.llama.patching.recipe import load_series
from kvquant.llama.patching.transaction import apply_series, revert_series

OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.utime", "os.listdir"}


#: Not empty once the blow has fallen, also when the operation coped with it.
STRUCK: list[int] = []


def strike(blow: str, at: int, root: Path) -> None:
    """Make this process meet ``blow`` at its file operation number ``at`` below ``root``; every fsync is one
    too.
    """
    seen = 0

    def count(path: object) -> None:
        nonlocal seen
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(str(root)):
            seen += 1
            if seen == at:
                STRUCK.append(at)
                meet(blow)

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in OPERATIONS:
            count(args[0])

    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        count(Path(f"/proc/self/fd/{descriptor}").readlink())
        real_fsync(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def meet(blow: str) -> None:
    if blow == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if blow == "interrupt":
        raise KeyboardInterrupt
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run(blow: str, operation: str, at: int, root: Path, patches: Path) -> None:
    series = load_series(patches)
    strike(blow, at, root)
    try:
        apply_series(series, root) if operation == "apply" else revert_series(root)
    except (LlamaError, KeyboardInterrupt):
        os._exit(1)
    os._exit(1 if STRUCK else 0)


def main(blow: str, operation: str, tree: Path, patches: Path, work: Path) -> None:
    at, done = 0, False
    while not done:
        at += 1
        root = work / str(at)
        shutil.copytree(tree, root)
        child = os.fork()
        if child == 0:
            run(blow, operation, at, root, patches)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        done = status == 0
        print(at, status, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(Path(name) for name in sys.argv[3:6]))
