"""Configures and builds llama.cpp programs with cmake and ninja, and records what came out.

A build folder belongs to one source path, target and set of arguments. Its ``build-info.json`` exists
exactly while its programs are those of that record: it is removed before anything is built and written,
whole, at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvquant.cache import cache_folder, locked, make_folder
from kvquant.errors import LlamaError
from kvquant.files import write_atomic
from kvquant.llama.binary import Features, inspect_server
from kvquant.llama.patching.transaction import AppliedPatch, load_state
from kvquant.llama.toolchain import COMMON_ARGS, Target, TargetName, Tools, describe, find_target, find_tools
from kvquant.llama.tree import digest_tree
from kvquant.llama.workspace import tree_commit, tree_tag
from kvquant.processes.command import run_logged

SCHEMA_VERSION = 1
INFO_FILE = "build-info.json"
CONFIGURE_LOG = "configure.log"
BUILD_LOG = "build.log"

#: Everything that takes ``--kv-layers``, and the quantizer for models.
PROGRAMS = (
    "llama-server",
    "llama-cli",
    "llama-perplexity",
    "llama-bench",
    "llama-batched-bench",
    "llama-fit-params",
    "llama-quantize",
)

#: How many of a failed build's error lines are shown.
MAX_ERROR_LINES = 8

_STEP = re.compile(r"\[(\d+)/(\d+)\]")
_ERROR = re.compile(r"\berror:|^CMake Error|^FAILED:|undefined reference|No space left", re.IGNORECASE)

Say = Callable[[str], None]


@dataclass(frozen=True)
class BuildRequest:
    """What to build: a source tree as it stands, for a target.

    ``cmake_args`` come after kvquant's own, so they win. ``folder`` None means one in the cache.
    """

    source: Path
    target: TargetName = "native"
    programs: tuple[str, ...] = PROGRAMS
    cmake_args: tuple[str, ...] = ()
    folder: Path | None = None
    jobs: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class BuildInfo:
    """What a build was made from and what came out; stored as ``build-info.json``.

    ``commit`` and ``tag`` are upstream's, None when unknown; ``series_digest`` is None for an unpatched tree;
    ``source_sha256`` covers the whole source tree; ``files`` maps every program and library in ``bin`` to its
    SHA-256.
    """

    commit: str | None
    tag: str | None
    series_digest: str | None
    patches: tuple[AppliedPatch, ...]
    source_sha256: str
    target: TargetName
    cmake_args: tuple[str, ...]
    programs: tuple[str, ...]
    compiler: str
    cmake: str
    features: Features
    files: dict[str, str]


@dataclass(frozen=True)
class Build:
    """A finished build; ``bin`` holds its programs, ``fresh`` says whether anything had to be built."""

    folder: Path
    info: BuildInfo
    fresh: bool

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def program(self, name: str) -> Path:
        """The path of one of its programs. Raises LlamaError for a program that was not built."""
        if name not in self.info.programs:
            raise LlamaError(f"{self.folder} has no {name}; built there: {', '.join(self.info.programs)}")
        return self.bin / name


def build(request: BuildRequest, say: Say = lambda _: None) -> Build:
    """Build what is asked for, or find that it is built already.

    Raises LlamaError when a tool is missing or the build fails; its first error lines are said and its log is
    named.
    """
    folder = (request.folder or default_folder(request)).absolute()
    make_folder(folder)
    target = find_target(request.target)
    with locked(folder, say):
        recipe = _Recipe(digest_tree(request.source), _cmake_args(request, target), describe(target.compiler))
        known = read_info(folder)
        if known is not None and _is_current(folder, known, request, recipe):
            return Build(folder, known, fresh=False)
        programs = tuple(sorted({*request.programs, *(known.programs if known else ())}))
        (folder / INFO_FILE).unlink(missing_ok=True)
        tools = find_tools(say)
        _configure(folder, request.source, recipe.cmake_args, tools, say)
        _compile(folder, request.source, programs, request.jobs, tools, say)
        if digest_tree(request.source) != recipe.source_sha256:
            raise LlamaError(f"{request.source} was changed while it was built; build again")
        info = _describe_build(folder, request, target, tools, recipe, programs)
        record = {"schema_version": SCHEMA_VERSION, **asdict(info)}
        write_atomic(folder / INFO_FILE, json.dumps(record, indent=1) + "\n")
        return Build(folder, info, fresh=True)


@dataclass(frozen=True)
class _Recipe:
    """What decides whether a finished build can be used again."""

    source_sha256: str
    cmake_args: tuple[str, ...]
    compiler: str


def default_folder(request: BuildRequest) -> Path:
    """The build folder in the cache: beside a tree that lies there, else one named after the tree's path."""
    name = f"{request.target}-{_short_digest(*request.cmake_args)}"
    folder = cache_folder() / "llama.cpp"
    if request.source.is_relative_to(folder):
        return request.source.parent / name
    return folder / f"of-{_short_digest(str(request.source))}" / name


def _short_digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def read_info(folder: Path) -> BuildInfo | None:
    """The record of a finished build; None when there is none or it is of another version."""
    try:
        record = json.loads((folder / INFO_FILE).read_bytes())
        if record.pop("schema_version") != SCHEMA_VERSION:
            return None
        return _parse_info(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _parse_info(record: dict[str, Any]) -> BuildInfo:
    record["patches"] = tuple(AppliedPatch(**patch) for patch in record["patches"])
    record["cmake_args"] = tuple(record["cmake_args"])
    record["programs"] = tuple(record["programs"])
    record["features"] = Features(**record["features"])
    return BuildInfo(**record)


def _is_current(folder: Path, info: BuildInfo, request: BuildRequest, recipe: _Recipe) -> bool:
    return (
        _Recipe(info.source_sha256, info.cmake_args, info.compiler) == recipe
        and info.target == request.target
        and set(request.programs) <= set(info.programs)
        and all((folder / "bin" / name).is_file() for name in info.files)
    )


def _cmake_args(request: BuildRequest, target: Target) -> tuple[str, ...]:
    # What the programs print as version: upstream's own tags are its build numbers.
    commit, tag = tree_commit(request.source) or "unknown", tree_tag(request.source) or "b0"
    # The older name of LLAMA_BUILD_UI; the distributions of those tags lack the pages it wants.
    options = (request.source / "CMakeLists.txt").read_text(encoding="utf-8", errors="replace")
    page = ("-DLLAMA_BUILD_WEBUI=OFF",) if "option(LLAMA_BUILD_WEBUI " in options else ()
    return (
        *COMMON_ARGS,
        *page,
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DLLAMA_BUILD_COMMIT={commit[:12]}",
        f"-DLLAMA_BUILD_NUMBER={tag[1:]}",
        *target.cmake_args,
        *request.cmake_args,
    )


def _configure(folder: Path, source: Path, args: tuple[str, ...], tools: Tools, say: Say) -> None:
    say(f"configuring in {folder}")
    # An argument that was given once and is gone now must not live on in cmake's memory.
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    shutil.rmtree(folder / "CMakeFiles", ignore_errors=True)
    argv = [tools.cmake, *tools.cmake_args(), *args, "-S", str(source), "-B", str(folder)]
    lines: list[str] = []
    # Else a tree without .git inside another project's checkout would be named after that project's commit.
    environment = {"GIT_CEILING_DIRECTORIES": str(source.parent)}
    if run_logged(argv, folder / CONFIGURE_LOG, env=environment, on_line=lines.append):
        _raise_failure("configuring", folder / CONFIGURE_LOG, lines, say)


def _compile(
    folder: Path, source: Path, programs: tuple[str, ...], jobs: int, tools: Tools, say: Say
) -> None:
    for path in (folder / "bin").glob("llama-*"):
        if (
            path.name not in programs
        ):  # left by an interrupted build of more programs, perhaps of another source
            path.unlink()
    lines: list[str] = []
    shown = -1

    def watch(line: str) -> None:
        nonlocal shown
        lines.append(line)
        step = _STEP.match(line)
        if step and (tenth := 10 * int(step[1]) // int(step[2])) > shown:
            shown = tenth
            say(f"building: {step[1]} of {step[2]} steps")

    argv = [tools.cmake, "--build", str(folder), "--parallel", str(jobs), "--target", *programs]
    # Relative paths let ccache share objects between trees and machines: most files are the same in all.
    environment = {"CCACHE_BASEDIR": str(source.parent), "CCACHE_NOHASHDIR": "1"}
    if run_logged(argv, folder / BUILD_LOG, env=environment, on_line=watch):
        _raise_failure("building", folder / BUILD_LOG, lines, say)


def _raise_failure(step: str, log: Path, lines: list[str], say: Say) -> None:
    errors = [line.strip() for line in lines if _ERROR.search(line)] or lines[-MAX_ERROR_LINES:]
    for line in errors[:MAX_ERROR_LINES]:
        say(line)
    first = errors[0] if errors else "no output"
    raise LlamaError(f"{step} failed: {first} (log: {log})")


def _describe_build(
    folder: Path,
    request: BuildRequest,
    target: Target,
    tools: Tools,
    recipe: _Recipe,
    programs: tuple[str, ...],
) -> BuildInfo:
    state = load_state(request.source)
    server = folder / "bin" / "llama-server"
    features = inspect_server(server, target) if server.is_file() else Features(None, None, None, None, None)
    return BuildInfo(
        commit=tree_commit(request.source),
        tag=tree_tag(request.source),
        series_digest=state.series_digest if state else None,
        patches=state.patches if state else (),
        source_sha256=recipe.source_sha256,
        target=request.target,
        cmake_args=recipe.cmake_args,
        programs=programs,
        compiler=recipe.compiler,
        cmake=describe(tools.cmake),
        features=features,
        files=_digest_files(folder / "bin"),
    )


def _digest_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every program and library; links such as libllama.so are other names of files listed."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
