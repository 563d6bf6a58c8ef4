#!/usr/bin/env python3
"""Walk the range of llama.cpp tags: does the series fit, and do git, apply and revert agree, on each of them?

A sample is spread over the known tags, both ends included. Between neighbours where another alternative of
some edit matches, the tag where that changed is found by bisection and walked, too. Of a tag's distribution
only the files that the series asks for are kept, in the cache. Some of the tags can be compiled (the changed
sources, syntax only) and built and run. With --known the list of tags (patches/llama.cpp/TAGS) is first
brought up to date with the package index.

Examples:
  tools/walk_tags.py --tags 48 --out benchmarks/results/patch-range.json
  tools/walk_tags.py --known --newest --out walk.json
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from pathlib import Path

from kvquant.cache import cache_folder, make_folder, temporary_folder
from kvquant.documents import read_json, write_json
from kvquant.errors import KVQuantError, LlamaError
from kvquant.files import write_atomic
from kvquant.llama.archive import extract_tree
from kvquant.llama.build import Build, BuildRequest, build
from kvquant.llama.fetch import download_archive, fetch_tree, verify
from kvquant.llama.patching.diff import export_patch
from kvquant.llama.patching.plan import Plan
from kvquant.llama.patching.recipe import Series, load_series
from kvquant.llama.patching.transaction import apply_series, plan_tree, revert_series
from kvquant.llama.pin import TAGGED, Pin, load_pin, tag_number
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.llama.tree import digest_tree, source_files
from kvquant.shipped import patches_folder, reference_model

SCHEMA_VERSION = 2
PROGRAMS = ("llama-server", "llama-bench")
MIXED_POLICY, MIXED_TYPES = "0-10:q8_0,11-:k=q5_0/v=q4_0", [("q8_0", "q8_0")] * 11 + [("q5_0", "q4_0")] * 21
UNOPTIMIZED = ("-DCMAKE_C_FLAGS_RELEASE=-O1", "-DCMAKE_CXX_FLAGS_RELEASE=-O0")

#: Where headers lie, for compiling single sources without configuring the tree.
INCLUDES = (
    "src",
    "include",
    "ggml/include",
    "common",
    "vendor",
    "tools/mtmd",
    "ggml/src",
    "ggml/src/ggml-cpu",
)


@dataclass(frozen=True)
class Failure:
    """An edit that does not fit a tag, and why."""

    edit: str
    reason: str


@dataclass(frozen=True)
class Built:
    """What the programs of a tag showed, patched with the series of that digest."""

    tag: str
    series_digest: str
    programs: tuple[str, ...]
    compiler: str
    kv_layers: bool | None
    vectors_hold: bool
    serves_mixed: bool


@dataclass(frozen=True)
class Walked:
    """One tag. ``variants`` maps each edit with alternatives to the one that matches, from 0; the three
    proofs are None where an edit fails.
    """

    tag: str
    sha256: str
    n_edits: int
    skipped: tuple[str, ...]
    variants: dict[str, int]
    failures: tuple[Failure, ...] = ()
    git_applies: bool | None = None
    same_as_apply: bool | None = None
    reverts: bool | None = None

    @property
    def holds(self) -> bool:
        return not self.failures and bool(self.git_applies and self.same_as_apply and self.reverts)


@dataclass(frozen=True)
class Compiled:
    """The changed and added C++ sources of one patched tag: how many, and which do not compile."""

    tag: str
    n_sources: int
    broken: tuple[str, ...]


@dataclass(frozen=True)
class Edge:
    """``what``, one way to take an edit, ends or begins between two neighbouring tags."""

    before: str
    tag: str
    what: str


@dataclass
class Record:
    """benchmarks/results/patch-range.json. ``n_known`` tags of the range come as source distributions."""

    walked: date
    series_digest: str
    oldest: str
    newest: str
    n_known: int
    tags: list[Walked] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    compiled: list[Compiled] = field(default_factory=list)
    cmake_args: tuple[str, ...] = UNOPTIMIZED
    built: list[Built] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Walk:
    """A walk in progress. The record is written after every step: one cut short keeps what it proved."""

    def __init__(self, pin: Pin, series: Series, out: Path, *, offline: bool) -> None:
        self.pin, self.series, self.out, self.offline = pin, series, out, offline
        tags = [tag for tag in pin.tags if tag in pin.range]
        self.record = Record(date.today(), series.digest, tags[0], tags[-1], len(tags))
        self.tags = [tag for tag in tags if not offline or self._kept(tag).is_dir()]
        self._seen: dict[str, Walked] = {}

    def write(self) -> None:
        self.record.tags = sorted(self._seen.values(), key=lambda row: tag_number(row.tag))
        write_json(self.out, self.record)

    def go_on(self, earlier: Record) -> bool:
        """Take over what an earlier walk of the same series proved; of one of another series only what was
        built, which names its own. Return whether tags were taken over.
        """
        if earlier.series_digest != self.series.digest:
            self.record.built = earlier.built
            return False
        self._seen = {row.tag: row for row in earlier.tags}
        self.record = earlier
        return True

    def sample(self, count: int) -> None:
        """Walk ``count`` tags spread over the range, both ends included."""
        count = min(count, len(self.tags))
        steps = [round(n * (len(self.tags) - 1) / max(1, count - 1)) for n in range(count)]
        for position in sorted({0, len(self.tags) - 1, *steps}):
            self.walk(self.tags[position])

    def find_edges(self) -> None:
        """Walk every tag at which the way some edit is made changes, found between the tags walked so far."""
        self.record.edges = []
        walked = [position for position, tag in enumerate(self.tags) if tag in self._seen]
        for first, last in pairwise(walked):
            self._bisect(first, last)
        self.write()

    def walk(self, tag: str) -> Walked:
        """What takes seconds: whether every edit fits, and what git, apply and revert make of the series."""
        if tag in self._seen:
            return self._seen[tag]
        tree = self._files(tag)
        plan = plan_tree(self.series, tree)
        alternatives = {
            f"{patch.name} {edit.id}"
            for patch in self.series.patches
            for edit in patch.edits
            if len(edit.anchors) > 1
        }
        edits = [outcome for outcome in plan.outcomes if outcome.id != "new-file"]
        matching = {f"{o.patch} {o.id}": o.variant for o in edits if o.status == "matches"}
        row = Walked(
            tag,
            self.pin.tags[tag],
            len(edits),
            tuple(f"{o.patch} {o.id}" for o in edits if o.status == "skipped"),
            {name: variant for name, variant in matching.items() if name in alternatives},
            tuple(Failure(f"{o.patch} {o.id}", o.reason) for o in plan.failures),
        )
        if not row.failures:
            git_applies, same, reverts = prove_diffs(self.series, plan, tree)
            row = Walked(
                row.tag, row.sha256, row.n_edits, row.skipped, row.variants, (), git_applies, same, reverts
            )
        say(
            f"{tag}: {'holds' if row.holds else [failure.edit for failure in row.failures] or 'proof failed'}"
        )
        self._seen[tag] = row
        self.write()
        return row

    def compile(self, tag: str) -> None:
        """Whether the changed and the added sources compile; syntax only, so without the rest of the tree."""
        with temporary_folder(cache_folder()) as work:
            tree = fetch_tree(self.pin, tag=tag, dest=work / "tree", say=say)
            changed = apply_series(self.series, tree)
            sources = [path for path in changed if path.endswith(".cpp")]
            broken = tuple(path for path in sources if not compiles(tree, path))
        self.record.compiled.append(Compiled(tag, len(sources), broken))
        say(f"{tag}: {len(sources) - len(broken)} of {len(sources)} sources compile {' '.join(broken)}")
        self.write()

    def build(self, tag: str, jobs: int) -> None:
        """What takes minutes: whether the patched tree compiles, and what its programs say."""
        work = cache_folder() / "llama.cpp" / "walk-builds" / tag
        make_folder(work)
        if not (work / "tree").is_dir():
            fetch_tree(self.pin, tag=tag, dest=work / "tree", say=say)
        apply_series(self.series, work / "tree")
        programs = (*PROGRAMS, *self.series.programs)
        request = BuildRequest(work / "tree", "native", programs, UNOPTIMIZED, work / "build", jobs)
        done = build(request, say)
        self.record.built = [row for row in self.record.built if row.tag != tag]
        self.record.built.append(
            Built(
                tag,
                self.series.digest,
                done.info.programs,
                done.info.compiler,
                done.info.features.kv_layers,
                run_vectors(done),
                serve_mixed(done),
            )
        )
        self.write()

    def _bisect(self, first: int, last: int) -> None:
        """Find, and walk, every tag between two where the way an edit is made changes."""
        before, after = self.walk(self.tags[first]), self.walk(self.tags[last])
        if signature(before) == signature(after):
            return
        if last - first > 1:
            middle = (first + last) // 2
            self._bisect(first, middle)
            self._bisect(middle, last)
            return
        for what in sorted(signature(before) ^ signature(after)):
            self.record.edges.append(Edge(before.tag, after.tag, what))

    def _kept(self, tag: str) -> Path:
        """Where a tag's files are kept; a series that asks for others has a folder of its own."""
        asked = hashlib.sha256("\n".join(sorted(asked_for(self.series))).encode()).hexdigest()[:12]
        return cache_folder() / "llama.cpp" / "walk" / asked / tag

    def _files(self, tag: str) -> Path:
        """The files of a tag that the series asks for, taken from its distribution, which is not kept."""
        target = self._kept(tag)
        if not target.is_dir():
            make_folder(target.parent)
            sdist = self.pin.sdist(tag=tag)
            there = (cache_folder() / "downloads" / sdist.filename).is_file()
            path = download_archive(sdist, say)
            verify(path, sdist, say)
            with temporary_folder(target.parent) as work:
                extract_tree(path, sdist.folder, work / "tree", only=asked_for(self.series))
                (work / "tree").rename(target)
            if not there:
                path.unlink()
        return target


def signature(row: Walked) -> set[str]:
    """How a tag takes the edits, as far as there is a choice."""
    return {
        *(f"{edit}: alternative {variant + 1}" for edit, variant in row.variants.items()),
        *(f"{edit}: not wanted" for edit in row.skipped),
        *(f"{failure.edit}: does not fit" for failure in row.failures),
    }


def asked_for(series: Series) -> set[str]:
    """Every path that planning the series reads, and the file by which a tree is known."""
    paths = {"CMakeLists.txt"}
    for patch in series.patches:
        paths.update(new.path for new in patch.new_files)
        for edit in patch.edits:
            paths.update({edit.file, *([edit.when.file] if edit.when else [])})
    return paths


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


def compiles(tree: Path, path: str) -> bool:
    includes = [f"-I{tree / folder}" for folder in INCLUDES]
    argv = ["c++", "-std=c++17", "-fsyntax-only", "-w", "-DGGML_USE_CPU", *includes, str(tree / path)]
    done = subprocess.run(argv, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        say("\n".join(line for line in done.stderr.splitlines() if "error" in line)[:1000])
    return done.returncode == 0


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


def known_tags() -> dict[str, str]:
    """Every tag that the index has, with the SHA-256 it states, by pip's own finder; one request."""
    from pip._internal.commands import create_command

    command = create_command("download")
    options, _ = command.parse_args(["--no-binary", ":all:", TAGGED])
    with command.main_context():
        session = command.get_default_session(options)  # type: ignore[attr-defined]
        finder = command._build_package_finder(options=options, session=session)  # type: ignore[attr-defined]
        found = {
            f"b{re.sub(r'[.]0[.]0$', '', str(candidate.version))}": candidate.link.hash
            for candidate in finder.find_all_candidates(TAGGED)
            if candidate.link.hash_name == "sha256"
        }
    return dict(sorted(found.items(), key=lambda item: tag_number(item[0])))


def update_known(pin: Pin, path: Path) -> list[str]:
    """Add the index's new tags to TAGS; those added. Raises LlamaError when a known checksum has changed."""
    found = known_tags()
    other = [tag for tag, sha256 in pin.tags.items() if found.get(tag, sha256) != sha256]
    if other:
        raise LlamaError(f"the index now states other checksums for {', '.join(other)}; nothing was changed")
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    tags = dict(sorted({**found, **pin.tags}.items(), key=lambda item: tag_number(item[0])))
    write_atomic(path, "\n".join([*head, *(f"{tag} {sha256}" for tag, sha256 in tags.items())]) + "\n")
    return [tag for tag in tags if tag not in pin.tags]


def newest_beyond(pin: Pin) -> Sequence[str]:
    """The known tags that are newer than the range."""
    return [tag for tag in pin.tags if tag_number(tag) > tag_number(pin.range.newest)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tags", type=int, default=48, help="how many tags the sample has (default 48)")
    parser.add_argument("--tag", action="append", default=[], help="walk this tag, too; may be repeated")
    parser.add_argument(
        "--newest", action="store_true", help="walk only the tags that are newer than the range"
    )
    parser.add_argument("--known", action="store_true", help="bring TAGS up to date with the index first")
    parser.add_argument("--offline", action="store_true", help="only tags whose files are in the cache")
    parser.add_argument(
        "--compile", action="append", default=[], metavar="TAG", help="compile this tag's sources"
    )
    parser.add_argument("--build", action="append", default=[], metavar="TAG", help="build and run this tag")
    parser.add_argument(
        "--more",
        action="store_true",
        help="go on with the record of an earlier walk; of another series it keeps what was built",
    )
    parser.add_argument("--patches", type=Path, metavar="DIR", help="the folder with the series and its PIN")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default 2)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON record")
    arguments = parser.parse_args()
    try:
        patches = arguments.patches or patches_folder()
        if arguments.known:
            for tag in update_known(load_pin(patches), patches / "TAGS"):
                say(f"new: {tag}")
        pin = load_pin(patches)
        walk = Walk(pin, load_series(patches), arguments.out, offline=arguments.offline)
        goes_on = arguments.more and walk.go_on(read_json(Record, arguments.out))
        for tag in [*arguments.tag, *(newest_beyond(pin) if arguments.newest else [])]:
            walk.walk(tag)
        if not arguments.newest:
            if not goes_on:
                walk.sample(arguments.tags)
            walk.find_edges()
        for tag in arguments.compile:
            walk.compile(tag)
        for tag in arguments.build:
            walk.build(tag, arguments.jobs)
        walk.write()
    except KVQuantError as error:
        say(f"walk_tags.py: error: {error}")
        return error.exit_code
    record = walk.record
    bad = [row.tag for row in record.tags if not row.holds]
    bad += [row.tag for row in record.compiled if row.broken]
    bad += [row.tag for row in record.built if not (row.kv_layers and row.vectors_hold and row.serves_mixed)]
    say(
        f"{len(record.tags)} tags walked; {'all hold' if not bad else 'these do not hold: ' + ', '.join(bad)}"
    )
    return 3 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
