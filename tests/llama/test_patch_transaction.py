"""Applying and reverting: every byte comes back, and no blow at any moment leaves a tree in between."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kvquant.errors import LlamaError, PatchError
from kvquant.llama.patching.plan import make_plan
from kvquant.llama.patching.transaction import (
    apply_series,
    changed_files,
    exclusive,
    load_state,
    plan_tree,
    read_pristine,
    restored_files,
    revert_series,
)
from kvquant.llama.tree import read_file
from llama.patch_trees import CACHE, CONTEXT, LAYERS_H, RECIPE, Entry, make_series, make_tree, snapshot

SCRIPT = Path(__file__).with_name("struck_down.py")


def patched_files(root: Path) -> dict[str, Entry]:
    """The tree's files without kvquant's own folder."""
    return {path: entry for path, entry in snapshot(root).items() if not path.startswith(".kvquant")}


def test_apply_writes_and_revert_restores_every_byte_and_mode(tmp_path: Path) -> None:
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    before = snapshot(root)
    plan = make_plan(series, lambda path: read_file(root, path))
    written = apply_series(series, root)
    assert written == ("src/cache.cpp", "src/context.cpp", "src/layers/layers.h")
    after = patched_files(root)
    for change in plan.changes:
        assert after[change.path].content == change.after
    assert after["src/cache.cpp"].mode == 0o755
    assert after["src/other.cpp"] == before["src/other.cpp"]
    assert revert_series(root) == written
    assert snapshot(root) == before


def test_apply_again_does_nothing(tmp_path: Path) -> None:
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    apply_series(series, root)
    once = snapshot(root)
    assert apply_series(series, root) == ()
    assert snapshot(root) == once


def test_revert_of_an_unpatched_tree_does_nothing(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    before = snapshot(root)
    assert revert_series(root) == ()
    assert snapshot(root) == before


def test_restored_files_look_new_to_build_tools(tmp_path: Path) -> None:
    """An object built from the patched file must not pass for one of the older, restored file."""
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    os.utime(root / "src/cache.cpp", (1, 1))
    start = time.time() - 1
    apply_series(series, root)
    assert (root / "src/cache.cpp").stat().st_mtime > start
    os.utime(root / ".kvquant/applied/original/src/cache.cpp", (1, 1))
    revert_series(root)
    assert (root / "src/cache.cpp").stat().st_mtime > start


def test_one_edit_that_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", cache=CACHE.replace(b"type_v", b"kind_v"))
    before = snapshot(root)
    with pytest.raises(
        PatchError, match=r"0001-layers types in src/cache.cpp: anchor found 1 times, wanted 2"
    ):
        apply_series(make_series(tmp_path / "patches"), root)
    assert snapshot(root) == before


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    (root / "src/layers").mkdir()
    (root / "src/layers/layers.h").write_bytes(b"mine\n")
    before = snapshot(root)
    with pytest.raises(PatchError, match="already has this file"):
        apply_series(series, root)
    assert snapshot(root) == before


# An added file that was deleted is one put back, see below.
@pytest.mark.parametrize(
    ("path", "change"),
    [("src/cache.cpp", b"int mine;\n"), ("src/cache.cpp", None), ("src/layers/layers.h", b"int mine;\n")],
)
def test_changes_since_are_never_lost(tmp_path: Path, path: str, change: bytes | None) -> None:
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    apply_series(series, root)
    if change is None:
        (root / path).unlink()
    else:
        (root / path).write_bytes(change)
    state = load_state(root)
    assert state is not None
    assert changed_files(root, state) == (path,)
    before = snapshot(root)
    for command in (lambda: revert_series(root), lambda: apply_series(series, root)):
        with pytest.raises(PatchError, match="were changed since: " + path):
            command()
        assert snapshot(root) == before


def test_other_files_may_change_while_patched(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    apply_series(make_series(tmp_path / "patches"), root)
    (root / "src/other.cpp").write_bytes(b"int mine;\n")
    (root / "src/layers/mine.h").write_bytes(b"int mine;\n")
    revert_series(root)
    assert (root / "src/other.cpp").read_bytes() == b"int mine;\n"
    assert sorted(path.name for path in (root / "src/layers").iterdir()) == ["mine.h"]


def test_another_version_must_be_reverted_first(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    apply_series(make_series(tmp_path / "a"), root)
    newer = make_series(tmp_path / "b", RECIPE + "# newer\n")
    with pytest.raises(PatchError, match="another version of the series"):
        apply_series(newer, root)
    revert_series(root)
    assert apply_series(newer, root)


def test_a_patched_tree_is_planned_as_it_was(tmp_path: Path) -> None:
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    fresh = plan_tree(series, root)
    apply_series(series, root)
    assert plan_tree(series, root) == fresh
    assert read_pristine(root, "src/cache.cpp") == CACHE
    assert read_pristine(root, "src/layers/layers.h") is None
    assert read_pristine(root, "src/other.cpp") == b"int other;\n"


def test_two_commands_do_not_meet(tmp_path: Path) -> None:
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    with exclusive(root), pytest.raises(PatchError, match="another kvquant command is working on"):
        apply_series(series, root)


def strike_down(blow: str, operation: str, tmp_path: Path) -> list[tuple[Path, int]]:
    """Every copy of a tree with the exit status of the operation that was struck there; the last one came
    through.
    """
    make_series(tmp_path / "patches")
    root = make_tree(tmp_path / "tree")
    if operation == "revert":
        apply_series(make_series(tmp_path / "patches"), root)
    (tmp_path / "work").mkdir()
    argv = [
        sys.executable,
        str(SCRIPT),
        blow,
        operation,
        str(root),
        str(tmp_path / "patches"),
        str(tmp_path / "work"),
    ]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True, timeout=300)
    return [(tmp_path / "work" / at, int(status)) for at, status in map(str.split, done.stdout.splitlines())]


@pytest.mark.parametrize("operation", ["apply", "revert"])
def test_a_kill_at_any_moment_is_put_right_by_the_next_command(tmp_path: Path, operation: str) -> None:
    struck = strike_down("kill", operation, tmp_path)
    series = make_series(tmp_path / "patches")
    original = snapshot(make_tree(tmp_path / "original"))
    patched_root = make_tree(tmp_path / "patched")
    apply_series(series, patched_root)
    patched = patched_files(patched_root)
    assert [status for _, status in struck] == [-9] * (len(struck) - 1) + [0]
    assert len(struck) > 20
    torn = 0
    for root, _ in struck:
        torn += patched_files(root) not in (original, patched)
        with exclusive(root):
            pass
        if load_state(root) is None:
            assert snapshot(root) == original
        else:
            assert patched_files(root) == patched
        # And the tool works on as ever.
        apply_series(series, root)
        assert patched_files(root) == patched
        revert_series(root)
        assert snapshot(root) == original
    assert torn >= 2, "no kill fell between two moves: the test does not test what it says"


@pytest.mark.parametrize("blow", ["full", "interrupt"])
def test_a_failing_operation_is_undone_at_once(tmp_path: Path, blow: str) -> None:
    original = snapshot(make_tree(tmp_path / "original"))
    series = make_series(tmp_path / "patches")
    patched_root = make_tree(tmp_path / "patched")
    apply_series(series, patched_root)
    patched = patched_files(patched_root)
    struck = strike_down(blow, "apply", tmp_path)
    assert len(struck) > 20
    for root, status in struck:
        # Whole in either case: a failure after the last rename finds the series applied.
        assert patched_files(root) in (original, patched), f"at {root.name}, status {status}"
        with exclusive(root):
            pass
        assert snapshot(root) == original or load_state(root) is not None


@pytest.mark.parametrize("limit", [0, 1, 10, 100, 500])
def test_a_file_that_cannot_be_written_whole_changes_nothing(tmp_path: Path, limit: int) -> None:
    """The kernel cuts every write off after ``limit`` bytes, as a full disk or quota does."""
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    before = snapshot(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(PatchError, match="File too large; the tree is as it was"):
            apply_series(series, root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(root) == before


def test_work_done_after_an_interruption_is_never_overwritten(tmp_path: Path) -> None:
    struck = [root for root, status in strike_down("kill", "apply", tmp_path) if status]
    torn = [root for root in struck if (root / ".kvquant/pending/original/src/cache.cpp").exists()]
    assert torn
    for root in torn:
        (root / "src/cache.cpp").write_bytes(b"int mine;\n")
        with (
            pytest.raises(PatchError, match="was changed after an interrupted patch command"),
            exclusive(root),
        ):
            pass
        assert (root / "src/cache.cpp").read_bytes() == b"int mine;\n"
        (root / "src/cache.cpp").unlink()
        with exclusive(root) as recovered:
            assert recovered
        assert (root / "src/cache.cpp").read_bytes() == CACHE


def test_hostile_trees_lead_nowhere(tmp_path: Path) -> None:
    series = make_series(tmp_path / "patches")
    outside = tmp_path / "outside.cpp"
    outside.write_bytes(CACHE)
    linked = make_tree(tmp_path / "file-link")
    (linked / "src/cache.cpp").unlink()
    (linked / "src/cache.cpp").symlink_to(outside)
    folder = make_tree(tmp_path / "folder-link")
    (folder / "src").rename(tmp_path / "elsewhere")
    (folder / "src").symlink_to(tmp_path / "elsewhere")
    state = make_tree(tmp_path / "state-link")
    (tmp_path / "state").mkdir()
    (state / ".kvquant").symlink_to(tmp_path / "state")
    for root in (linked, folder, state):
        before = snapshot(tmp_path)
        with pytest.raises(LlamaError, match="is a symbolic link"):
            apply_series(series, root)
        assert snapshot(tmp_path) == before
    originals = make_tree(tmp_path / "originals-link")
    apply_series(series, originals)
    (originals / ".kvquant/applied").rename(originals / ".kvquant/pending")
    (originals / ".kvquant/pending/original/src").rename(tmp_path / "their-src")
    (originals / ".kvquant/pending/original/src").symlink_to(tmp_path / "their-src")
    before = snapshot(tmp_path)
    with pytest.raises(LlamaError, match="is a symbolic link"):
        revert_series(originals)
    assert snapshot(tmp_path) == before
    pipe = make_tree(tmp_path / "pipe")
    (pipe / "src/cache.cpp").unlink()
    os.mkfifo(pipe / "src/cache.cpp")
    with pytest.raises(LlamaError, match="is not a regular file"):
        apply_series(series, pipe)


@pytest.mark.parametrize(
    "damage",
    [
        ("src/cache.cpp", "../../outside.cpp"),
        ("src/cache.cpp", "/etc/passwd"),
        ("src/cache.cpp", ".kvquant/applied"),
        ('"schema_version": 1', '"schema_version": 2'),
        ('"files"', '"fils"'),
        ("{", "["),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, damage: tuple[str, str]) -> None:
    root = make_tree(tmp_path / "tree")
    apply_series(make_series(tmp_path / "patches"), root)
    record = root / ".kvquant/applied/state.json"
    record.write_text(record.read_text().replace(*damage))
    before = snapshot(tmp_path)
    with pytest.raises(PatchError, match=r"state\.json is damaged"):
        revert_series(root)
    assert snapshot(tmp_path) == before


def test_a_read_only_file_is_patched_and_stays_read_only(tmp_path: Path) -> None:
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    (root / "src/context.cpp").chmod(0o444)
    before = snapshot(root)
    apply_series(series, root)
    assert snapshot(root)["src/context.cpp"].mode == 0o444
    revert_series(root)
    assert snapshot(root) == before


def test_a_hard_linked_file_is_not_written_through(tmp_path: Path) -> None:
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    os.link(root / "src/context.cpp", tmp_path / "twin.cpp")
    apply_series(series, root)
    assert (tmp_path / "twin.cpp").read_bytes() == CONTEXT
    assert (root / "src/layers/layers.h").read_bytes() == LAYERS_H


def test_a_file_that_changes_while_the_patch_is_computed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    plan = plan_tree(series, root)
    stale = replace(plan, changes=tuple(replace(change, before=b"older") for change in plan.changes[:1]))
    monkeypatch.setattr("kvquant.llama.patching.transaction.plan_tree", lambda *_: stale)
    before = snapshot(root)
    with pytest.raises(PatchError, match="changed while the patch was computed"):
        apply_series(series, root)
    assert snapshot(root) == before


#: What somebody may do to each file of a patched tree: nothing, git checkout, their own edit, deletion.
FATES = ("patched", "original", "own", "gone")


def put(root: Path, path: str, fate: str, before: dict[str, Entry]) -> None:
    """Bring one file of a patched tree to its fate."""
    if fate == "own":
        (root / path).write_bytes(b"int mine;\n")
    elif fate == "gone" or (fate == "original" and path not in before):
        (root / path).unlink()
    elif fate == "original":
        (root / path).write_bytes(before[path].content or b"")


@pytest.mark.parametrize("fates", list(itertools.product(FATES, repeat=3)), ids="-".join)
def test_whatever_became_of_a_patched_tree_there_is_a_way_out(tmp_path: Path, fates: tuple[str, ...]) -> None:
    root, series = make_tree(tmp_path / "tree"), make_series(tmp_path / "patches")
    before = snapshot(root)
    paths = apply_series(series, root)
    for path, fate in zip(paths, fates, strict=True):
        put(root, path, fate, before)
    state = load_state(root)
    assert state is not None
    changed = {
        path
        for path, fate in zip(paths, fates, strict=True)
        if fate == "own" or (fate == "gone" and path in before)
    }
    assert set(changed_files(root, state)) == changed
    damaged = snapshot(root)
    if changed:
        for command in (lambda: apply_series(series, root), lambda: revert_series(root)):
            with pytest.raises(PatchError, match="revert --keep-changed"):
                command()
            assert snapshot(root) == damaged
        assert set(revert_series(root, keep_changed=True)) == set(paths) - changed
        after = snapshot(root)
        assert ".kvquant" not in after
        for path in set(paths) - changed:
            assert after.get(path) == before.get(path)
        for path in changed:
            assert after.get(path) == damaged.get(path)
    else:
        restored = any(fate != "patched" for fate in fates)
        assert bool(restored_files(root, state)) is restored
        assert apply_series(series, root) == (paths if restored else ())
        assert changed_files(root, state) == restored_files(root, state) == ()
        revert_series(root)
        assert snapshot(root) == before
