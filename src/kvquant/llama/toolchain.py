"""The programs a build needs, and the two targets: this machine, and boards with an RK3588."""

from __future__ import annotations

import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvquant.errors import LlamaError
from kvquant.processes.command import run_captured

TargetName = Literal["native", "rk3588"]
TARGETS: tuple[TargetName, ...] = ("native", "rk3588")

#: Debian's cross compiler for 64-bit ARM, and where it keeps that machine's libraries.
CROSS_PREFIX = "aarch64-linux-gnu-"
CROSS_SYSROOT = "/usr/aarch64-linux-gnu"

#: Cortex-A76 has dot products and 16-bit float vectors beyond plain ARMv8.2-A, and neither i8mm nor SVE.
RK3588_ARCH = "armv8.2-a+dotprod+fp16"
RK3588_TUNE = "-mtune=cortex-a76"

#: What every build is configured with: nothing from the network, nothing that needs another library.
COMMON_ARGS = (
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_CCACHE=OFF",  # the launcher is chosen here, see Tools.cmake_args
)


@dataclass(frozen=True)
class Tools:
    """Absolute paths of the build programs; ``ccache`` is None when there is none."""

    cmake: str
    ninja: str
    ccache: str | None

    def cmake_args(self) -> tuple[str, ...]:
        launcher = (
            ()
            if self.ccache is None
            else tuple(f"-DCMAKE_{language}_COMPILER_LAUNCHER={self.ccache}" for language in ("C", "CXX"))
        )
        return ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={self.ninja}", *launcher)


@dataclass(frozen=True)
class Target:
    """What is built for: cmake arguments, the compiler, and how a built program is run here.

    ``runner`` comes before a program's path (empty on the machine it is built for); None when it cannot be
    run here.
    """

    name: TargetName
    cmake_args: tuple[str, ...]
    compiler: str
    objdump: str | None
    runner: tuple[str, ...] | None


def find_tools(say: Callable[[str], None]) -> Tools:
    """cmake, ninja and ccache; missing cmake or ninja is installed from PyPI into the running Python
    environment.

    Raises LlamaError when that does not work.
    """
    missing = [name for name in ("cmake", "ninja") if _which(name) is None]
    if missing:
        say(f"{' and '.join(missing)} not found: installing from PyPI into {sys.prefix}")
        status, output = run_captured([sys.executable, "-m", "pip", "install", *missing], timeout_seconds=600)
        if status:
            last = output.strip().splitlines()[-1:] or ["no output"]
            raise LlamaError(
                f"cannot install {' and '.join(missing)} with pip: {last[0]}; install them by hand"
            )
    cmake, ninja = _which("cmake"), _which("ninja")
    if cmake is None or ninja is None:
        raise LlamaError(f"no cmake or no ninja on PATH or in {sys.prefix}; install both")
    return Tools(cmake, ninja, _which("ccache"))


def find_target(name: TargetName) -> Target:
    """The build target. Raises LlamaError when its compiler is missing, naming the Debian package that has
    it.
    """
    if name == "native":
        return Target(name, (), _compiler("c++", "g++"), _which("objdump"), ())
    # Static apart from the C library: the programs are copied to a board that has no build tree.
    args = (
        "-DGGML_NATIVE=OFF",
        f"-DGGML_CPU_ARM_ARCH={RK3588_ARCH}",
        f"-DCMAKE_C_FLAGS={RK3588_TUNE}",
        f"-DCMAKE_CXX_FLAGS={RK3588_TUNE}",
        "-DBUILD_SHARED_LIBS=OFF",
        "-DCMAKE_EXE_LINKER_FLAGS=-static-libgcc -static-libstdc++",
    )
    if platform.machine() == "aarch64":
        return Target(name, args, _compiler("c++", "g++"), _which("objdump"), ())
    cross = (
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_C_COMPILER={_compiler(f'{CROSS_PREFIX}gcc', 'gcc-aarch64-linux-gnu')}",
        f"-DCMAKE_CXX_COMPILER={_compiler(f'{CROSS_PREFIX}g++', 'g++-aarch64-linux-gnu')}",
        # Build programs come from this machine, libraries and headers never do.
        f"-DCMAKE_FIND_ROOT_PATH={CROSS_SYSROOT}",
        "-DCMAKE_FIND_ROOT_PATH_MODE_PROGRAM=NEVER",
        "-DCMAKE_FIND_ROOT_PATH_MODE_LIBRARY=ONLY",
        "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY",
        "-DCMAKE_FIND_ROOT_PATH_MODE_PACKAGE=ONLY",
    )
    qemu = _which("qemu-aarch64-static")
    runner = None if qemu is None else (qemu, "-cpu", "cortex-a76", "-L", CROSS_SYSROOT)
    compiler = _compiler(f"{CROSS_PREFIX}g++", "g++-aarch64-linux-gnu")
    return Target(name, (*args, *cross), compiler, _which(f"{CROSS_PREFIX}objdump"), runner)


def arm_warnings(cmake_args: Sequence[str]) -> tuple[str, ...]:
    """Why arguments given for an RK3588 build do not do what they look like; empty when nothing is known
    against them.
    """
    found = []
    text = " ".join(cmake_args)
    for flag in ("GGML_INTERNAL_DOTPROD", "GGML_INTERNAL_FP16_VECTOR_ARITHMETIC"):
        if flag in text:
            found.append(
                f"{flag} is read only by builds with GGML_CPU_ALL_VARIANTS; in this build it does nothing"
            )
    for arch in re.findall(r"(?:-march=|GGML_CPU_ARM_ARCH=)(\S+)", text):
        lost = [name for name in ("dotprod", "fp16") if f"+{name}" not in arch]
        if lost and arch.startswith("armv8"):
            found.append(
                f"-march={arch} turns off {' and '.join(lost)}, also behind -mcpu=cortex-a76; "
                f"use GGML_CPU_ARM_ARCH={RK3588_ARCH}"
            )
    return tuple(found)


def describe(program: str) -> str:
    """The first line a program prints for ``--version``."""
    _, output = run_captured([program, "--version"])
    return (output.strip().splitlines() or [""])[0]


def _compiler(program: str, package: str) -> str:
    path = _which(program)
    if path is None:
        raise LlamaError(f"no {program} on PATH; install it (Debian: apt-get install {package})")
    return path


def _which(name: str) -> str | None:
    """The program on PATH or beside the running Python, where pip puts it."""
    beside = Path(sysconfig.get_path("scripts")) / name
    return shutil.which(name) or (str(beside) if beside.is_file() else None)
