"""Looks into a built llama.cpp program: does it have the patch's flag, and which machine instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kvquant.errors import CheckFailed
from kvquant.llama.toolchain import Target
from kvquant.processes.command import run_captured

#: Disassembling a static server takes about ten seconds.
_OBJDUMP_SECONDS = 300.0
#: Long enough for a server under qemu.
_RUN_SECONDS = 120.0

_SDOT = re.compile(r"\tsdot\t")
_FP16_FMLA = re.compile(r"\tfmla\tv\d+\.[48]h")
_GLIBC = re.compile(r"GLIBC_(\d+)\.(\d+)")
_FLAG = re.compile(r"(\w+) = (\d+)")


@dataclass(frozen=True)
class Features:
    """What was found in a built llama-server. None means it was not, or could not be, looked at.

    ``system_info`` are llama.cpp's own flags for its CPU code; ``sdot`` and ``fp16_fmla`` count dot-product
    and 16-bit float vector multiply-add instructions in the disassembly; ``glibc`` is the oldest C library it
    starts with.
    """

    kv_layers: bool | None
    system_info: dict[str, int] | None
    sdot: int | None
    fp16_fmla: int | None
    glibc: str | None


def inspect_server(server: Path, target: Target) -> Features:
    """Run and, for ARM, disassemble ``server``. Raises LlamaError when it cannot be started at all."""
    kv_layers = system_info = None
    if target.runner is not None:
        command = [*target.runner, str(server)]
        _, usage = run_captured([*command, "--help"], timeout_seconds=_RUN_SECONDS)
        kv_layers = "--kv-layers" in usage
        # No model of that name: the server says what it is, then ends.
        argv = [
            *command,
            "--verbosity",
            "4",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--model",
            "no-such-model.gguf",
        ]
        _, log = run_captured(argv, timeout_seconds=_RUN_SECONDS)
        system_info = parse_system_info(log)
    if target.objdump is None:
        return Features(kv_layers, system_info, None, None, None)
    sdot = fp16_fmla = None
    if target.name == "rk3588":
        _, listing = run_captured([target.objdump, "-d", str(server)], timeout_seconds=_OBJDUMP_SECONDS)
        sdot, fp16_fmla = len(_SDOT.findall(listing)), len(_FP16_FMLA.findall(listing))
    _, symbols = run_captured([target.objdump, "-T", str(server)], timeout_seconds=_OBJDUMP_SECONDS)
    return Features(kv_layers, system_info, sdot, fp16_fmla, newest_glibc(symbols))


def parse_system_info(log: str) -> dict[str, int] | None:
    """The flags of the ``system_info`` line, such as ``{"DOTPROD": 1}``; None when there is no such line."""
    for line in log.splitlines():
        if "system_info:" in line:
            return {name: int(value) for name, value in _FLAG.findall(line.partition("|")[2])}
    return None


def newest_glibc(symbols: str) -> str | None:
    """The newest ``GLIBC_x.y`` symbol version named in ``objdump -T`` output."""
    versions = [(int(major), int(minor)) for major, minor in _GLIBC.findall(symbols)]
    return None if not versions else "{}.{}".format(*max(versions))


def describe_features(features: Features) -> tuple[str, ...]:
    """What was found, for people; a check that could not be made is said, not passed over."""
    lines = []
    if features.kv_layers is None:
        lines.append("llama-server was not run: it was not built, or it runs only under qemu-user-static")
    else:
        lines.append(f"llama-server takes --kv-layers: {'yes' if features.kv_layers else 'no'}")
    if features.system_info is not None:
        flags = " ".join(f"{name}={value}" for name, value in features.system_info.items())
        lines.append(f"llama-server's system_info: {flags}")
    if features.sdot is not None:
        lines.append(f"instructions: {features.sdot} sdot, {features.fp16_fmla} fp16 fmla")
    if features.glibc is not None:
        lines.append(f"needs glibc {features.glibc} or newer")
    return tuple(lines)


def require_rk3588(features: Features) -> None:
    """Raise CheckFailed when a build for the RK3588 lacks the instructions that make it fast there."""
    lacking = [
        f"{name} in the disassembly"
        for name, count in (("sdot", features.sdot), ("fp16 fmla", features.fp16_fmla))
        if count == 0
    ]
    for flag in ("DOTPROD", "FP16_VA"):
        if features.system_info is not None and features.system_info.get(flag) != 1:
            lacking.append(f"{flag} = 1 in system_info")
    if lacking:
        raise CheckFailed(
            f"the build has no {', no '.join(lacking)}; build without --cmake-arg to get the right flags"
        )
