"""A private, patched copy of a source tree, so that building never changes the tree it was given."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kvquant.cache import cache_folder, locked, make_folder, temporary_folder
from kvquant.documents import write_json
from kvquant.errors import LlamaError, PatchError
from kvquant.llama.fetch import Origin, read_origin
from kvquant.llama.patching.recipe import Series
from kvquant.llama.patching.transaction import (
    apply_series,
    changed_files,
    load_state,
    restored_files,
)
from kvquant.llama.pin import is_tag
from kvquant.llama.tree import ORIGIN_FILE, digest_tree, source_files
from kvquant.processes.command import run_captured


def copy_folder(source: Path, series: Series) -> Path:
    """Where the copy of ``source`` with ``series`` applied is kept, as ``tree``, beside its builds.

    Each version of the series has its own, so that no build is changed under a program that still runs.
    """
    name = hashlib.sha256(os.fsencode(source)).hexdigest()[:12]
    return cache_folder() / "llama.cpp" / f"patched-{name}-{series.digest[:12]}"


def patched_copy(source: Path, series: Series, say: Callable[[str], None]) -> Path:
    """The private copy of ``source`` with ``series`` applied, made or brought up to date with ``source``.

    A tree that is patched with ``series`` already is returned itself. Raises PatchError when the series does
    not fit.
    """
    state = load_state(source)
    if state is not None:
        if state.series_digest != series.digest:
            raise PatchError(
                f"{source} is patched with another version of the series; run: kvquant patch revert --source "
                f"{source}"
            )
        return source
    folder = copy_folder(source, series)
    make_folder(folder)
    copy = folder / "tree"
    with locked(folder, say):
        digest = digest_tree(source)
        if not _is_copy(copy, digest):
            say(f"copying {source} to {copy}")
            _copy(source, digest, copy)
        written = apply_series(series, copy)
        if written:
            say(f"applied {len(series.patches)} patches, {len(written)} files, to {copy}")
    return copy


def tree_commit(root: Path) -> str | None:
    """The upstream commit of a tree, from what ``fetch`` noted or from git; None when neither knows."""
    origin = read_origin(root)
    if origin is not None:
        return origin.commit
    if not (root / ".git").exists():
        return None
    status, output = run_captured(["git", "-C", str(root), "rev-parse", "HEAD"])
    return output.strip() if status == 0 else None


def tree_tag(root: Path) -> str | None:
    """The upstream tag of a tree, from what ``fetch`` noted or from git; None when neither knows one."""
    origin = read_origin(root)
    if origin is not None:
        return origin.tag
    if not (root / ".git").exists():
        return None
    status, output = run_captured(
        ["git", "-C", str(root), "describe", "--tags", "--exact-match", "--match", "b[0-9]*"]
    )
    tag = output.strip()
    return tag if status == 0 and is_tag(tag) else None


def _is_copy(copy: Path, digest: str) -> bool:
    """Whether ``copy`` was made from a tree of that digest and only kvquant changed it since."""
    try:
        origin, state = read_origin(copy), load_state(copy)
        if origin is None or origin.tree_sha256 != digest:
            return False
        return (
            digest_tree(copy) == digest
            if state is None
            else not changed_files(copy, state) and not restored_files(copy, state)
        )
    except LlamaError:
        return False


def _copy(source: Path, digest: str, copy: Path) -> None:
    """Copy the source files, with new times, so that no build object made from an older copy passes as
    current.
    """
    with temporary_folder(copy.parent) as work:
        tree = work / "tree"
        for path in source_files(source):
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, target)
            shutil.copymode(source / path, target)
        origin = Origin(tree_commit(source), f"copy of {source}", digest, tree_tag(source))
        write_json(tree / ORIGIN_FILE, origin)
        if copy.exists():
            shutil.rmtree(copy)
        tree.rename(copy)
