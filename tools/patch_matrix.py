#!/usr/bin/env python3
"""Hold the patch series to every pinned source distribution: check, export through git, apply, revert, build,
run.

Each tree is fetched into the cache and copied; nothing else is touched. With --archives the distributions are
taken from a folder instead of the package index. The programs are built without optimisation: what is proven
is that they compile, link, know the flag and serve a mixed policy.

Example: tools/patch_matrix.py --out benchmarks/results/patch-matrix.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kvquant.cache import cache_folder
from kvquant.errors import KVQuantError, LlamaError
from kvquant.files import write_atomic
from kvquant.llama.build import Build, BuildRequest, build
from kvquant.llama.fetch import default_dest, fetch_tree
from kvquant.llama.patching.diff import export_patch
from kvquant.llama.patching.plan import Plan
from kvquant.llama.patching.recipe import Series, load_series
from kvquant.llama.patching.transaction import apply_series, plan_tree, revert_series
from kvquant.llama.pin import Sdist, load_pin
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.llama.tree import digest_tree, source_files
from kvquant.shipped import patches_folder, reference_model

PROGRAMS = ("llama-server", "llama-bench")
MIXED_POLICY, MIXED_TYPES = "0-10:q8_0,11-:k=q5_0/v=q4_0", [("q8_0", "q8_0")] * 11 + [("q5_0", "q4_0")] * 21
UNOPTIMIZED = ("-DCMAKE_C_FLAGS_RELEASE=-O1", "-DCMAKE_CXX_FLAGS_RELEASE=-O0")


@dataclass(frozen=True)
class Row:
    """What one tree showed. ``drifted`` counts edits that did not fit; the rest is None where it was not
    reached.
    """

    sdist: str
    commit: str | None
    edits: int
    skipped: int
    drifted: int
    git_applies: bool | None = None
    same_as_apply: bool | None = None
    reverts: bool | None = None
    built: tuple[str, ...] = ()
    kv_layers: bool | None = None
    vectors_hold: bool | None = None
    serves_mixed: bool | None = None
    compiler: str | None = None


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prove_patches(series: Series, sdist: Sdist, tree: Path) -> Row:
    """What takes seconds: whether every edit fits, and what git, apply and revert make of the series."""
    plan = plan_tree(series, tree)
    status = Counter(outcome.status for outcome in plan.outcomes)
    row = Row(
        sdist=f"{sdist.name} {sdist.version}",
        commit=sdist.commit,
        edits=len(plan.outcomes),
        skipped=status["skipped"],
        drifted=status["fails"],
    )
    for outcome in plan.failures:
        say(f"{outcome.patch} {outcome.id} in {outcome.file}: {outcome.reason}")
    if plan.failures:
        return row
    git_applies, same, reverts = prove_diffs(series, plan, tree)
    return replace(row, git_applies=git_applies, same_as_apply=same, reverts=reverts)


def prove_build(series: Series, row: Row, version: str, tree: Path, jobs: int) -> Row:
    """What takes minutes: whether the patched tree compiles, and what its programs say."""
    work = cache_folder() / "llama.cpp" / "matrix"
    copy = work / f"tree-{version}"
    shutil.rmtree(copy, ignore_errors=True)
    copy_sources(tree, copy)
    apply_series(series, copy)
    programs = (*PROGRAMS, *series.programs)
    try:
        done = build(
            BuildRequest(copy, "native", programs, UNOPTIMIZED, work / f"build-{version}", jobs), say
        )
    except LlamaError as error:
        say(str(error))
        return row
    return replace(
        row,
        built=done.info.programs,
        kv_layers=done.info.features.kv_layers,
        vectors_hold=run_vectors(done),
        serves_mixed=serve_mixed(done),
        compiler=done.info.compiler,
    )


def prove_diffs(series: Series, plan: Plan, tree: Path) -> tuple[bool, bool, bool]:
    """Whether git takes the exported diffs, makes what apply makes, and revert brings every byte back."""
    before = digest_tree(tree)
    with tempfile.TemporaryDirectory() as folder:
        by_git, by_apply = Path(folder, "git"), Path(folder, "apply")
        for copy in (by_git, by_apply):
            copy_sources(tree, copy)
        subprocess.run(["git", "init", "--quiet", str(by_git)], check=True)
        taken = all(git_takes(by_git, export_patch(item)) for item in plan.patches)
        apply_series(series, by_apply)
        same = digest_tree(by_git) == digest_tree(by_apply)
        revert_series(by_apply)
        return taken, same, digest_tree(by_apply) == before


def git_takes(root: Path, diff: bytes) -> bool:
    for option in (["--check"], []):
        argv = ["git", "apply", "--whitespace=nowarn", *option, "-"]
        if subprocess.run(argv, cwd=root, input=diff, check=False).returncode:
            return False
    return True


def copy_sources(tree: Path, target: Path) -> None:
    for path in source_files(tree):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes((tree / path).read_bytes())


def run_vectors(done: Build) -> bool:
    """Whether the tree's own parser of the policy language agrees with the package's vectors."""
    vectors = Path(__file__).resolve().parents[1] / "tests" / "vectors" / "policy.json"
    program = done.program("llama-kv-layers-test")
    return subprocess.run([program, vectors], check=False, timeout=60).returncode == 0


def serve_mixed(done: Build) -> bool:
    """Whether the tree's server stores each layer of the reference model as the policy says, and answers."""
    model = reference_model()
    try:
        with LlamaServer(done.bin, ServerOptions(model, 256, kv_layers=MIXED_POLICY, n_threads=1)) as server:
            answer = server.completion(" Copy: befu memo |", 2)
            layers = server.kv_log().layers
    except LlamaError as error:
        say(str(error))
        return False
    stored = [(layer.k.type, layer.v.type if layer.v else None) for layer in layers]
    return stored == MIXED_TYPES and answer["tokens_predicted"] == 2


def prove(archives: Path | None, jobs: int, out: Path) -> list[Row]:
    """All trees; the record is written after every step, so that a run cut short leaves what it proved.

    Raises KVQuantError when a tree cannot be fetched or the record cannot be written.
    """
    pin, series = load_pin(patches_folder()), load_series(patches_folder())
    trees: list[Path] = []
    rows: list[Row] = []

    def write() -> None:
        head = {"schema_version": 1, "series_digest": series.digest, "cmake_args": UNOPTIMIZED}
        write_atomic(out, json.dumps({**head, "trees": [asdict(row) for row in rows]}, indent=1) + "\n")

    for sdist in pin.sdists:
        archive = archives / sdist.filename if archives and not default_dest(sdist).exists() else None
        trees.append(fetch_tree(pin, version=sdist.version, archive=archive, say=say))
        rows.append(prove_patches(series, sdist, trees[-1]))
    write()
    # The oldest first: where something is wrong, it is likeliest there.
    for number, (sdist, tree) in reversed(list(enumerate(zip(pin.sdists, trees, strict=True)))):
        if rows[number].same_as_apply:
            rows[number] = prove_build(series, rows[number], sdist.version, tree, jobs)
            write()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archives", type=Path, metavar="DIR", help="folder with the sdists' .tar.gz files")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default 2)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON record")
    arguments = parser.parse_args()
    try:
        rows = prove(arguments.archives, arguments.jobs, arguments.out)
    except KVQuantError as error:
        say(f"patch_matrix.py: error: {error}")
        return error.exit_code
    good = [row for row in rows if row.reverts and row.vectors_hold and row.serves_mixed]
    say(f"{len(good)} of {len(rows)} trees hold")
    return 0 if len(good) == len(rows) else 3


if __name__ == "__main__":
    sys.exit(main())
