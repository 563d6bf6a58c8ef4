"""Exported diffs: git takes them, and what they make is what apply makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.cache import cache_folder
from kvquant.llama.fetch import default_dest
from kvquant.llama.patching.diff import export_patch
from kvquant.llama.patching.plan import FileChange, PatchPlan, make_plan
from kvquant.llama.patching.recipe import Patch, load_series
from kvquant.llama.patching.surroundings import load_surroundings, surroundings_of
from kvquant.llama.patching.transaction import apply_series, plan_tree
from kvquant.llama.pin import load_pin
from kvquant.llama.tree import digest_tree, read_file
from kvquant.shipped import patches_folder
from llama.patch_trees import CACHE, CONTEXT, make_series, make_tree, snapshot


def git_apply(root: Path, diff: bytes) -> None:
    subprocess.run(["git", "init", "--quiet", "."], cwd=root, check=True)
    subprocess.run(["git", "apply", "--check", "-"], cwd=root, input=diff, check=True)
    subprocess.run(["git", "apply", "--whitespace=nowarn", "-"], cwd=root, input=diff, check=True)


@pytest.mark.parametrize(
    ("context", "cache"),
    [
        (CONTEXT, CACHE),
        (CONTEXT.replace(b"\n", b"\r\n"), CACHE),
        (CONTEXT, CACHE.rstrip(b"\n")),
        (CONTEXT, b"\xff\xfe\x00" + CACHE),
    ],
    ids=["plain", "crlf", "no last newline", "not UTF-8"],
)
def test_git_makes_what_apply_makes(tmp_path: Path, context: bytes, cache: bytes) -> None:
    files = {"context": context, "cache": cache}
    ours, theirs = make_tree(tmp_path / "ours", **files), make_tree(tmp_path / "theirs", **files)
    series = make_series(tmp_path / "patches")
    plan = plan_tree(series, ours)
    assert not plan.failures
    git_apply(theirs, b"".join(export_patch(item) for item in plan.patches))
    apply_series(series, ours)
    made = {path: entry for path, entry in snapshot(ours).items() if not path.startswith(".kvquant")}
    assert made == {path: entry for path, entry in snapshot(theirs).items() if not path.startswith(".git")}


def test_the_head_names_purpose_digest_and_license(tmp_path: Path) -> None:
    series = make_series(tmp_path / "patches")
    plan = make_plan(series, lambda path: read_file(make_tree(tmp_path / path.replace("/", "-")), path))
    text = export_patch(plan.patches[0]).decode()
    assert text.startswith("0001-layers\n\nTypes per layer.\n")
    assert series.patches[0].digest in text
    assert "MIT licensed" in text


contents = st.lists(
    st.sampled_from([b"a\n", b"b\n", b"\n", b"c\r\n", b"\xff\n", b"+x\n", b"-y\n"]), max_size=25
)
tails = st.sampled_from([b"", b"end", b"\r"])


@given(old=contents, new=contents, old_tail=tails, new_tail=tails)
def test_any_change_of_a_file_goes_through_git(
    tmp_path_factory: pytest.TempPathFactory,
    old: list[bytes],
    new: list[bytes],
    old_tail: bytes,
    new_tail: bytes,
) -> None:
    before, after = b"".join(old) + old_tail, b"".join(new) + new_tail
    if before == after or not before or not after:  # an emptied file is deleted, which no edit does
        return
    root = tmp_path_factory.mktemp("git")
    (root / "f").write_bytes(before)
    patch = Patch("0001-p", "p", (), (), (), "digest")
    git_apply(root, export_patch(PatchPlan(patch, (), (FileChange("f", before, after),))))
    assert (root / "f").read_bytes() == after


@pytest.fixture
def pinned() -> Path:
    """The unpatched tree of the pin."""
    tree = default_dest(load_pin(patches_folder()).sdist())
    if not tree.is_dir():
        pytest.skip(f"the pinned tree is not in {cache_folder()}; run: kvquant llama fetch")
    return tree


@pytest.mark.parametrize("name", ["0001-kv-layers", "0004-kv-attention"])
def test_what_could_go_upstream_alone_applies_alone(pinned: Path, tmp_path: Path, name: str) -> None:
    """Its committed diff is the one to send: git takes it without the rest, and makes what apply makes."""
    alone = load_series(patches_folder()).only((name,))
    plan = plan_tree(alone, pinned)
    assert not plan.failures
    diff = (patches_folder() / f"{name}.patch").read_bytes()
    assert export_patch(plan.patches[0]) == diff
    by_git, by_apply = tmp_path / "git", tmp_path / "apply"
    for copy in (by_git, by_apply):
        for path in ["CMakeLists.txt", *(change.path for change in plan.changes if change.before)]:
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_bytes((pinned / path).read_bytes())
    git_apply(by_git, diff)
    apply_series(alone, by_apply)
    assert digest_tree(by_git) == digest_tree(by_apply)


def test_the_committed_diffs_are_those_of_the_pinned_tree(pinned: Path) -> None:
    patches, tree = patches_folder(), pinned
    plan = plan_tree(load_series(patches), tree)
    assert not plan.failures
    expected = {f"{item.patch.name}.patch": export_patch(item) for item in plan.patches}
    assert {path.name for path in patches.glob("*.patch")} == set(expected)
    for name, diff in expected.items():
        assert (patches / name).read_bytes() == diff, f"{name} is stale; run: make export"
    known = surroundings_of(plan, lambda path: read_file(tree, path), load_pin(patches).tag)
    assert load_surroundings(patches) == known, "surroundings.json is stale; run: make export"
