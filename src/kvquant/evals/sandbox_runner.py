"""Runs a model's Python code behind limits; started by ``kvquant.evals.sandbox`` as a program, by path.

    sandbox_runner.py JOB CPU_SECONDS MEMORY_BYTES FILE_BYTES

JOB is a JSON file {"code", "function", "calls": [[argument, ...], ...]}. Prints one JSON line,
{"values": [...]} or {"failure", "detail"}: "code" does not compile or define the function, "call" raises.

The limits are the boundary: CPU time, memory, file size, no further process, the user nobody where started
as root, no network where a name space may be made. An audit hook on top refuses everything but computing,
so that careless code fails at once and with a name.
"""

# These are loaded before the limits, because the code may import them and the files may then be out of reach.
import __future__  # noqa: F401

import bisect  # noqa: F401
import collections  # noqa: F401
import contextlib
import copy  # noqa: F401
import ctypes
import dataclasses  # noqa: F401
import datetime  # noqa: F401
import decimal  # noqa: F401
import fractions  # noqa: F401
import functools  # noqa: F401
import hashlib  # noqa: F401
import heapq  # noqa: F401
import io
import itertools  # noqa: F401
import json
import math  # noqa: F401
import operator  # noqa: F401
import os
import random  # noqa: F401
import re  # noqa: F401
import resource
import signal
import statistics  # noqa: F401
import string  # noqa: F401
import sys
import typing  # noqa: F401
import unicodedata  # noqa: F401

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_NOBODY = 65534

_ALLOWED_EVENTS = {
    "builtins.id",
    "code.__new__",
    "compile",
    "exec",
    "function.__new__",
    "import",
    "marshal.loads",
    "object.__delattr__",
    "object.__getattr__",
    "object.__setattr__",
    "sys._getframe",
    "sys.unraisablehook",
}


def confine(cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Give up whatever the code must not have; what the system does not offer is left out."""
    libc = ctypes.CDLL(None)
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for which, limit in limits.items():
        resource.setrlimit(which, (limit, limit))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    with contextlib.suppress(AttributeError):
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # Changing the user has cleared what the watchdog set.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

    def refuse(event: str, _: tuple[object, ...]) -> None:
        if event not in _ALLOWED_EVENTS:
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(refuse)


def run(code: str, function: str, calls: list[list[object]]) -> dict[str, object]:
    """Define the code, call the function, and return what is to be printed."""
    namespace: dict[str, object] = {"__name__": "answer"}
    try:
        exec(compile(code, "answer", "exec"), namespace)
        called = namespace[function]
    except BaseException as error:
        return {"failure": "code", "detail": describe(error)}
    try:
        return {"values": [called(*arguments) for arguments in calls]}  # type: ignore[operator]
    except BaseException as error:
        return {"failure": "call", "detail": describe(error)}


def describe(error: BaseException) -> str:
    """An exception in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 (pathlib would be loaded for this alone)
        job = json.load(file)
    out, sys.stdout, sys.stderr = sys.stdout, io.StringIO(), io.StringIO()
    confine(*(int(argument) for argument in sys.argv[2:5]))
    result = run(job["code"], job["function"], job["calls"])
    try:
        line = json.dumps(result)
    except BaseException as error:
        line = json.dumps({"failure": "call", "detail": f"returned what JSON cannot hold: {describe(error)}"})
    out.write(line + "\n")
    out.flush()


if __name__ == "__main__":
    main()
