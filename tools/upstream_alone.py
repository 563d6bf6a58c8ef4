#!/usr/bin/env python3
"""Build and test, each without the rest of the series, the patches that could go upstream alone.

The pinned tree gets one diff, with git apply, is built, runs the reference model with a mixed cache, and the
tests that know nothing of the other patches run against it. One entry per patch is written as soon as it is
proven; a patch that the record has in its present version is passed over, and an interrupted build goes on.

Example: tools/upstream_alone.py --stock "$(kvquant llama build --stock)" --work build/alone --out
benchmarks/results/upstream-alone.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from kvquant.cache import make_folder, temporary_folder
from kvquant.documents import read_json, write_json
from kvquant.errors import KVQuantError, LlamaError
from kvquant.llama.build import Build, BuildRequest, build
from kvquant.llama.fetch import fetch_tree
from kvquant.llama.patching.diff import export_patch
from kvquant.llama.patching.recipe import Series, load_series
from kvquant.llama.patching.transaction import plan_tree
from kvquant.llama.pin import Pin, load_pin
from kvquant.processes.command import run_captured, run_logged
from kvquant.shipped import patches_folder, reference_model
from walk_tags import git_takes, say, serve_mixed

ROOT = Path(__file__).resolve().parents[1]
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Suite:
    """What pytest counted in one file."""

    file: str
    passed: int
    skipped: int
    failed: int


@dataclass(frozen=True)
class Alone:
    """One patch on the pinned tree. ``test_program``: of this the diff has the source, but not the line of
    tools/CMakeLists.txt that builds it. ``mixed_cache``: the reference model ran with K and V of several
    types.
    """

    patch: str
    digest: str
    tag: str
    n_files: int
    n_added: int
    n_removed: int
    compiler: str
    programs: tuple[str, ...]
    test_program: str | None
    mixed_cache: bool
    suites: tuple[Suite, ...]

    @property
    def holds(self) -> bool:
        return self.mixed_cache and all(suite.passed and not suite.failed for suite in self.suites)


@dataclass
class Record:
    """benchmarks/results/upstream-alone.json."""

    patches: list[Alone] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Piece:
    """How one patch is proven. ``test_program``: name and folder of a program that the tests run, which only
    another patch of the series adds to tools/CMakeLists.txt.
    """

    patch: str
    programs: tuple[str, ...]
    suites: tuple[str, ...]
    runs_mixed: Callable[[Build], bool]
    test_program: tuple[str, str] | None = None


def bench_mixed(done: Build) -> bool:
    """Whether llama-bench computes prefill and decode with K and V of two types."""
    model = str(reference_model())
    what = ["-p", "64", "-n", "4", "-r", "1", "-t", "1", "-fa", "1", "-ctk", "q8_0", "-ctv", "q4_0"]
    status, output = run_captured([str(done.program("llama-bench")), "-m", model, *what])
    if status or not all(test in output for test in ("pp64", "tg4", "q8_0", "q4_0")):
        say(output)
        return False
    return True


PIECES = (
    Piece(
        "0001-kv-layers",
        ("llama-server",),
        tuple(
            f"tests/llama/test_proof_{name}.py"
            for name in ("identity", "policy_argument", "memory", "blocks", "state", "shift", "refusals")
        ),
        serve_mixed,
    ),
    Piece(
        "0004-kv-attention",
        ("llama-bench",),
        ("tests/attention/test_attention.py",),
        bench_mixed,
        ("llama-kv-attention-op", "tools/kv-attention-op"),
    ),
)


def prove(piece: Piece, alone: Series, pin: Pin, stock: Path, work: Path, jobs: int) -> Alone:
    """Patch, build and test. Raises KVQuantError when the diff does not apply or the tree does not build."""
    (planned,) = plan_tree(alone, fetch_tree(pin, say=say)).patches
    patch, diff = planned.patch, export_patch(planned)
    # A tree of this name beside its build, as everywhere, shares its unchanged objects by ccache.
    work = work / f"{patch.name}-{patch.digest[:12]}"
    tree = work / "tree"
    make_folder(work)
    if not tree.is_dir():
        make_tree(pin, diff, tree)
    arguments, programs = (), piece.programs
    if piece.test_program is not None:
        name, folder = piece.test_program
        arguments, programs = (
            (f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={listed(folder, work)}",),
            (*programs, name),
        )
    request = BuildRequest(tree, "native", programs, arguments, work / "build", jobs)
    done = build(request, say)
    lines = diff.decode().splitlines()
    return Alone(
        patch.name,
        patch.digest,
        pin.tag,
        len(planned.changes),
        sum(line.startswith("+") and not line.startswith("+++ ") for line in lines),
        sum(line.startswith("-") and not line.startswith("--- ") for line in lines),
        done.info.compiler,
        piece.programs,
        None if piece.test_program is None else piece.test_program[0],
        piece.runs_mixed(done),
        tuple(run_suite(file, done.bin, stock) for file in piece.suites),
    )


def make_tree(pin: Pin, diff: bytes, place: Path) -> None:
    """Put the pinned tree with one diff at ``place``, whole or not at all."""
    with temporary_folder(place.parent) as folder:
        tree = fetch_tree(pin, dest=folder / "tree", say=say)
        # Inside another checkout git would take the diff's paths for that one's.
        subprocess.run(["git", "init", "--quiet", str(tree)], check=True)
        if not git_takes(tree, diff):
            raise LlamaError(f"git does not take the diff on {pin.tag}")
        tree.rename(place)


def listed(folder: str, work: Path) -> Path:
    """A file that makes cmake build a program's folder, which the tree's own lists do not name."""
    path = work / "test-program.cmake"
    path.write_text(
        f"set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${{CMAKE_BINARY_DIR}}/bin)\nadd_subdirectory({folder})\n"
    )
    return path.absolute()


def run_suite(file: str, programs: Path, stock: Path) -> Suite:
    """Run one file of tests against ``programs``, and against ``stock`` where it compares the two."""
    say(f"testing: {file}")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-q", "-n0", "-p", "no:cacheprovider", f"--junit-xml={report}"]
        argv = [sys.executable, "-m", "pytest", f"--rootdir={ROOT}", *options, str(ROOT / file)]
        environment = {
            "KVQUANT_LLAMA_BIN": str(programs.absolute()),
            "KVQUANT_STOCK_BIN": str(stock.absolute()),
            "KVQUANT_TESTS_UPSTREAM": "1",  # the types of 0006-kv-types are not there
        }
        run_logged(argv, Path(folder, "log"), env=environment, on_line=say)
        counted = ElementTree.parse(report).getroot()[0].attrib
    failed, skipped = int(counted["failures"]) + int(counted["errors"]), int(counted["skipped"])
    return Suite(file, int(counted["tests"]) - failed - skipped, skipped, failed)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME", help="prove this patch alone")
    parser.add_argument(
        "--stock", type=Path, required=True, metavar="DIR", help="programs of the unpatched pin"
    )
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="where trees and builds are kept"
    )
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default 2)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON record")
    arguments = parser.parse_args()
    try:
        pin = load_pin(patches_folder())
        series = load_series(patches_folder())
        record = read_json(Record, arguments.out) if arguments.out.is_file() else Record()
        for piece in PIECES:
            alone = series.only((piece.patch,))
            known = [(row.digest, row.tag) for row in record.patches if row.holds]
            if arguments.only not in (None, piece.patch) or (alone.patches[0].digest, pin.tag) in known:
                continue
            row = prove(piece, alone, pin, arguments.stock, arguments.work, arguments.jobs)
            others = [other for other in record.patches if other.patch != row.patch]
            record.patches = sorted([*others, row], key=lambda row: row.patch)
            write_json(arguments.out, record)
    except KVQuantError as error:
        say(f"upstream_alone.py: error: {error}")
        return error.exit_code
    bad = [row.patch for row in record.patches if not row.holds]
    say(f"{len(record.patches)} patches; " + (f"these do not hold: {', '.join(bad)}" if bad else "all hold"))
    return 3 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
