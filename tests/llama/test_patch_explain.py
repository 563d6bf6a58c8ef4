"""What is said, and what can be done, about a tree that the series does not fit."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import run_kvquant
from kvquant.llama.patching.diff import export_patch
from kvquant.llama.patching.explain import Explainer
from kvquant.llama.patching.merge import MergedFile, merge_plan, merged_diff
from kvquant.llama.patching.plan import Outcome, Plan, make_plan
from kvquant.llama.patching.recipe import Series, load_series
from kvquant.llama.patching.surroundings import (
    Excerpt,
    Surroundings,
    changes_around,
    load_surroundings,
    surroundings_of,
)
from kvquant.llama.pin import Pin, Range, load_pin
from kvquant.llama.tree import read_file
from kvquant.shipped import patches_folder
from llama.patch_trees import CONTEXT, make_series, make_tree

LONG = (
    b"".join(b"int before_%d;\n" % n for n in range(20))
    + CONTEXT
    + b"".join(b"int after_%d;\n" % n for n in range(20))
)
#: The same, with an anchor that is written otherwise and lines that came in between.
DRIFTED = LONG.replace(b"llama-impl.h", b"llama-implementation.h").replace(
    b"int after_3;", b"int new;\nint after_3;"
)
PIN = Pin("https://example.invalid", "b20", Range("b10", "b20", date(2026, 1, 2)), {"b10": "", "b20": ""}, ())


def plan_of(series: Series, root: Path) -> Plan:
    return make_plan(series, lambda path: read_file(root, path))


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return make_series(tmp_path / "patches")


@pytest.fixture
def fitting(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "fitting", context=LONG)


@pytest.fixture
def drifted(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "drifted", context=DRIFTED)


def explainer(series: Series, fitting: Path, root: Path, tree: str | None) -> Explainer:
    plan = plan_of(series, fitting)
    known = surroundings_of(plan, lambda path: read_file(fitting, path), "b20")
    return Explainer(lambda path: read_file(root, path), tree, PIN, known)


def test_an_edit_that_fails_shows_its_purpose_and_what_changed(
    series: Series, fitting: Path, drifted: Path
) -> None:
    (failure,) = plan_of(series, drifted).failures
    lines = explainer(series, fitting, drifted, "b30").outcome_lines(series, failure)
    assert "    why: Because of include." in lines
    assert any(line.startswith("    nearest, ") for line in lines)
    assert "    --- b20 src/context.cpp:13" in lines
    assert "    +++ this tree src/context.cpp:13" in lines
    assert '    -#include "llama-impl.h"' in lines
    assert '    +#include "llama-implementation.h"' in lines
    (fits, *_) = plan_of(series, drifted).outcomes
    assert len(explainer(series, fitting, drifted, None).outcome_lines(series, fits)) == 1


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ("b15", "b10 to b20 (last walked 2026-01-02); this tree is b15, inside that range"),
        ("b30", "this tree is b30, outside that range"),
        ("0123456789ab", "this tree is 0123456789ab"),
        (None, "b10 to b20 (last walked 2026-01-02)"),
    ],
)
def test_the_range_is_said(series: Series, fitting: Path, tree: str | None, said: str) -> None:
    line = explainer(series, fitting, fitting, tree).range_line()
    assert line is not None and line.endswith(said)
    assert replace(explainer(series, fitting, fitting, tree), pin=None).range_line() is None


def test_an_issue_has_every_fact(series: Series, fitting: Path, drifted: Path) -> None:
    text = explainer(series, fitting, drifted, "b30").issue(plan_of(series, drifted), "1.2.3")
    assert text.startswith("# 1 of 4 edits do not fit b30\n")
    for fact in (
        "kvquant 1.2.3",
        series.digest[:12],
        "outside that range",
        "0001-layers include",
        "why: Because",
    ):
        assert fact in text
    assert text.count("```") == 2


def test_a_place_of_which_nothing_is_left_is_said(series: Series, fitting: Path) -> None:
    (_, include, *_) = plan_of(series, fitting).outcomes
    known = surroundings_of(plan_of(series, fitting), lambda path: read_file(fitting, path), "b20")
    assert changes_around(include, known, b"int other;\n") == ["nothing like b20 src/context.cpp:13 is left"]
    assert changes_around(include, Surroundings("b20", {}), LONG) == []


texts = st.lists(st.text("abc ", min_size=2, max_size=6), min_size=3, max_size=12)


@given(excerpt=texts, head=texts, tail=texts)
def test_a_place_that_is_as_it_was_shows_no_change_or_one_that_is_likelier(
    excerpt: list[str], head: list[str], tail: list[str]
) -> None:
    """The place found has at least as many lines in common as the true one; unchanged, it gives no diff."""
    outcome = Outcome("0001-layers", "include", "src/context.cpp", "fails")
    unique = [f"line {number} {text}" for number, text in enumerate(excerpt)]
    content = "\n".join([*head, *unique, *tail]).encode()
    known = Surroundings("b1", {"0001-layers include": (Excerpt(1, "\n".join(unique)),)})
    assert changes_around(outcome, known, content) == []


def test_merge_places_what_git_is_certain_of(
    series: Series, fitting: Path, drifted: Path, tmp_path: Path
) -> None:
    moved = make_tree(
        tmp_path / "moved", context=LONG.replace(b'#include "llama-impl.h"', b'#include  "llama-impl.h"')
    )
    near = make_tree(tmp_path / "near", context=LONG.replace(b"static int two() {", b"static  int two() {"))
    base = plan_of(series, fitting)

    def merged(root: Path) -> dict[str, MergedFile]:
        files = merge_plan(plan_of(series, root), lambda path: read_file(root, path), base)
        return {file.path: file for file in files}

    assert merged(moved)["src/context.cpp"].verdict == "conflicts"
    assert merged(drifted)["src/context.cpp"].change is None
    far = make_tree(
        tmp_path / "far", context=LONG.replace(b"static int two() {\n", b"static int two() { // 2\n")
    )
    for root in (near, far):
        assert merged(root)["src/cache.cpp"].verdict == "fits"
    (tmp_path / "near/src/context.cpp").unlink()
    assert merged(near)["src/context.cpp"].verdict == "gone"


def test_a_merged_diff_is_what_git_applies(series: Series, fitting: Path, tmp_path: Path) -> None:
    # The anchor is there twice, which a recipe refuses; git sees one of them as new.
    twice = LONG + b'int x;\nint y;\nint z;\n#include "llama-impl.h"\n'
    root = make_tree(tmp_path / "twice", context=twice)
    plan = plan_of(series, root)
    assert [outcome.id for outcome in plan.failures] == ["include"]
    files = merge_plan(plan, lambda path: read_file(root, path), plan_of(series, fitting))
    assert {file.path: file.verdict for file in files} == {
        "src/cache.cpp": "fits",
        "src/context.cpp": "merged",
        "src/layers/layers.h": "fits",
    }
    subprocess.run(["git", "apply", "-"], cwd=root, input=merged_diff(files), check=True)
    after = (root / "src/context.cpp").read_bytes()
    assert after.count(b'#include "layers.h"') == 1
    assert b"return layers(2);" in after
    assert (root / "src/layers/layers.h").is_file()


def test_git_finds_the_old_version_of_an_exported_diff(series: Series, fitting: Path, tmp_path: Path) -> None:
    """In a clone that has the pinned tag, git apply --3way needs nothing but the diff."""
    clone = make_tree(tmp_path / "clone", context=LONG)
    (clone / "src/cache.cpp").chmod(0o644)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for argv in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "1"]):
        subprocess.run([*git, *argv], cwd=clone, check=True)
    (clone / "src/context.cpp").write_bytes(LONG.replace(b"static int one() {", b"static int uno() {"))
    subprocess.run([*git, "commit", "--quiet", "-am", "2"], cwd=clone, check=True)
    (patch,) = plan_of(series, fitting).patches
    subprocess.run(["git", "apply", "--3way", "-"], cwd=clone, input=export_patch(patch), check=True)
    after = (clone / "src/context.cpp").read_bytes()
    assert b"static int uno() {" in after and b"return layers(2);" in after


@pytest.mark.usefixtures("series")
def test_the_commands(fitting: Path, drifted: Path, tmp_path: Path) -> None:
    patches = ("--patches", tmp_path / "patches")
    assert run_kvquant("patch", "issue", "--source", fitting, *patches).stdout == ""
    issue = run_kvquant("patch", "issue", "--source", drifted, *patches)
    assert issue.returncode == 0 and issue.stdout.startswith("# 1 of 4 edits do not fit a llama.cpp tree\n")
    argv = ("patch", "merge", "--base", fitting, *patches, "--out", tmp_path / "m.patch", "--source")
    assert "use kvquant patch apply" in run_kvquant(*argv, fitting).stderr
    refused = run_kvquant(*argv, drifted)
    assert refused.returncode == 3 and "src/context.cpp: conflicts" in refused.stdout
    assert not (tmp_path / "m.patch").exists()
    twice = make_tree(tmp_path / "twice", context=LONG + b'int x;\nint y;\nint z;\n#include "llama-impl.h"\n')
    merged = run_kvquant(*argv, twice)
    assert merged.returncode == 0 and "for review" in merged.stderr
    assert (tmp_path / "m.patch").stat().st_size


def test_the_committed_surroundings_are_those_of_the_pinned_tree() -> None:
    patches = patches_folder()
    pin, known = load_pin(patches), load_surroundings(patches)
    assert known is not None and known.tree == pin.tag
    edits = {f"{patch.name} {edit.id}" for patch in load_series(patches).patches for edit in patch.edits}
    assert set(known.edits) <= edits
    assert all(places for places in known.edits.values())
