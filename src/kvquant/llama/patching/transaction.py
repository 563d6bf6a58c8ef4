"""Changes a source tree all-or-nothing, and back.

Everything lives in ``.kvquant/`` inside the tree, in one folder whose name is the state of the work:

* ``staging``   new files are being written; the tree is untouched, the folder may be deleted at any time;
* ``pending``   files are being moved; whoever finds it puts every original back;
* ``applied``   done; the originals wait in it for ``revert``.

Each step from one to the next is a single rename. All disk space is needed in ``staging``, before the tree
changes. Undoing an interrupted apply and reverting a finished one are the same code: rename to ``pending``,
move the originals back, rename to ``staging``, delete. Originals are moved, never copied, so their bytes and
modes cannot differ.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kvquant.errors import LlamaError, PatchError
from kvquant.llama.patching.plan import FileChange, Plan, make_plan
from kvquant.llama.patching.recipe import STATE_FOLDER, Series
from kvquant.llama.tree import read_file, refuse_links

SCHEMA_VERSION = 1

STAGING, PENDING, APPLIED = "staging", "pending", "applied"


@dataclass(frozen=True)
class PatchedFile:
    """One file of a patched tree; ``original_sha256`` is None for a file the patch added."""

    path: str
    original_sha256: str | None
    patched_sha256: str


@dataclass(frozen=True)
class AppliedPatch:
    """Name and digest of one applied patch."""

    name: str
    digest: str


@dataclass(frozen=True)
class TreeState:
    """What was done to a tree, stored as ``state.json``; ``new_folders`` were made for added files."""

    series_digest: str
    patches: tuple[AppliedPatch, ...]
    files: tuple[PatchedFile, ...]
    new_folders: tuple[str, ...]


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[bool]:
    """Hold the tree for this process, after undoing an apply or finishing a revert that was interrupted.

    Yields whether there was one. Raises PatchError when another process holds the tree.
    """
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PatchError(f"cannot open the folder {root}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PatchError(
                f"another kvquant command is working on {root}; try again when it is done"
            ) from error
        yield _settle(root)
    except OSError as error:
        raise PatchError(
            f"cannot finish work on {root}: {error.strerror or error}; fix that; the next kvquant patch "
            "command restores the tree"
        ) from error
    finally:
        os.close(descriptor)


def load_state(root: Path) -> TreeState | None:
    """What is applied to the tree, None for an unpatched one. Raises PatchError on a damaged record."""
    return _read_state(_state_folder(root) / APPLIED)


def changed_files(root: Path, state: TreeState) -> tuple[str, ...]:
    """Patched files that somebody changed since: neither as they were written nor as they were before."""
    return tuple(
        file.path
        for file in state.files
        if _digest_file(root, file.path) not in (file.patched_sha256, file.original_sha256)
    )


def restored_files(root: Path, state: TreeState) -> tuple[str, ...]:
    """Patched files that somebody put back as they were before the patch, such as ``git checkout .`` does."""
    return tuple(file.path for file in state.files if _digest_file(root, file.path) == file.original_sha256)


def read_pristine(root: Path, path: str) -> bytes | None:
    """A file's bytes before any patch, from the kept original in a patched tree; None when there is none."""
    state = load_state(root)
    for file in state.files if state else ():
        if file.path == path:
            if file.original_sha256 is None:
                return None
            return read_file(root, f"{STATE_FOLDER}/{APPLIED}/original/{path}")
    return read_file(root, path)


def plan_tree(series: Series, root: Path) -> Plan:
    """Compute ``series`` against the tree as it is without any patch."""
    return make_plan(series, lambda path: read_pristine(root, path))


def apply_series(series: Series, root: Path) -> tuple[str, ...]:
    """Patch the tree; the paths written, empty when this very series is applied already.

    A tree whose files were put back in the meantime is patched anew. Raises PatchError, with the tree as it
    was, when an edit fails, when another series or version is applied, when patched files were changed, or
    when the disk gives out.
    """
    with exclusive(root):
        state = load_state(root)
        if state is not None:
            _require_unchanged(root, state)
            if not restored_files(root, state):
                _require_same(root, state, series)
                return ()
            _take_back(root)
        plan = plan_tree(series, root)
        if plan.failures:
            first = plan.failures[0]
            raise PatchError(
                f"{len(plan.failures)} edits do not fit {root}, the first is {first.patch} {first.id} in "
                f"{first.file}: {first.reason}; nothing was changed; see: kvquant patch check --source {root}"
            )
        _apply(root, plan)
        return tuple(change.path for change in plan.changes)


def revert_series(root: Path, *, keep_changed: bool = False) -> tuple[str, ...]:
    """Put every original byte and mode back; the paths restored or removed, empty when nothing is applied.

    keep_changed: leave files that were changed since as they are, and forget their originals. Raises
    PatchError, with the tree as it was, when a patched file was changed since and is not to be kept.
    """
    with exclusive(root):
        state = load_state(root)
        if state is None:
            return ()
        kept = changed_files(root, state) if keep_changed else ()
        if not keep_changed:
            _require_unchanged(root, state)
        for path in kept:
            (_state_folder(root) / APPLIED / "original" / path).unlink(missing_ok=True)
        _take_back(root)
        return tuple(file.path for file in state.files if file.path not in kept)


def _take_back(root: Path) -> None:
    folder = _state_folder(root)
    (folder / APPLIED).rename(folder / PENDING)
    _sync_folder(folder)
    _roll_back(root)


def _require_same(root: Path, state: TreeState, series: Series) -> None:
    if state.series_digest != series.digest:
        names = ", ".join(patch.name for patch in state.patches)
        raise PatchError(
            f"{root} is patched with another version of the series ({names}; digest "
            f"{state.series_digest[:12]}, "
            f"wanted {series.digest[:12]}); run: kvquant patch revert --source {root}"
        )


def _require_unchanged(root: Path, state: TreeState) -> None:
    changed = changed_files(root, state)
    if changed:
        raise PatchError(
            f"{root}: patched files were changed since: {', '.join(changed)}; nothing was touched; "
            "put the patched or the original content back, or keep your changes and take back the rest: "
            f"kvquant patch revert --keep-changed --source {root}"
        )


def _apply(root: Path, plan: Plan) -> None:
    folder = _state_folder(root)
    try:
        state = _stage(root, folder, plan)
    except BaseException as error:
        _discard_staging(folder)
        raise _as_patch_error(root, error) from error
    (folder / STAGING).rename(folder / PENDING)
    try:
        _sync_folder(folder)
        _move_in(root, folder / PENDING, state)
        (folder / PENDING).rename(folder / APPLIED)
    except BaseException as error:
        if (folder / PENDING).exists():
            _roll_back(root)
        raise _as_patch_error(root, error) from error
    _sync_folder(folder)


def _as_patch_error(root: Path, error: BaseException) -> BaseException:
    if isinstance(error, OSError):
        return PatchError(f"cannot patch {root}: {error.strerror or error}; the tree is as it was")
    return error


def _stage(root: Path, folder: Path, plan: Plan) -> TreeState:
    """Write the new files and the record into ``staging``; the tree itself is only read."""
    staging = folder / STAGING
    staging.mkdir(parents=True)
    # A git checkout then does not list kvquant's folder as untracked.
    _write(folder / ".gitignore", b"*\n", 0o644)
    for change in plan.changes:
        if read_file(root, change.path) != change.before:
            raise PatchError(
                f"{root / change.path} changed while the patch was computed; nothing was changed, try again"
            )
        mode = 0o644 if change.before is None else stat.S_IMODE((root / change.path).stat().st_mode)
        _make_folders(staging / "new" / change.path)
        _make_folders(staging / "original" / change.path)
        _write(staging / "new" / change.path, change.after, mode)
    state = TreeState(
        plan.series.digest,
        tuple(AppliedPatch(item.patch.name, item.patch.digest) for item in plan.patches),
        tuple(_patched_file(change) for change in plan.changes),
        _missing_folders(root, plan.changes),
    )
    record = {"schema_version": SCHEMA_VERSION, **asdict(state)}
    _write(staging / "state.json", (json.dumps(record, indent=1) + "\n").encode(), 0o644)
    for name, _, _ in os.walk(staging):
        _sync_folder(Path(name))
    return state


def _patched_file(change: FileChange) -> PatchedFile:
    original = None if change.before is None else hashlib.sha256(change.before).hexdigest()
    return PatchedFile(change.path, original, hashlib.sha256(change.after).hexdigest())


def _missing_folders(root: Path, changes: Sequence[FileChange]) -> tuple[str, ...]:
    """Folders that must be made for the added files, outer before inner."""
    missing = set()
    for change in changes:
        for parent in PurePosixPath(change.path).parents:
            if not (root / parent).is_dir():
                missing.add(parent.as_posix())
    return tuple(sorted(missing))


def _move_in(root: Path, pending: Path, state: TreeState) -> None:
    for name in state.new_folders:
        (root / name).mkdir()
    for file in state.files:
        refuse_links(root, file.path)
        if file.original_sha256 is not None:
            (root / file.path).rename(pending / "original" / file.path)
        (pending / "new" / file.path).rename(root / file.path)
    for name in {str(PurePosixPath(file.path).parent) for file in state.files}:
        _sync_folder(root / name)


def _settle(root: Path) -> bool:
    """Undo what an interrupted command left behind; whether there was anything."""
    folder = _state_folder(root)
    if (folder / PENDING).exists():
        _roll_back(root)
        return True
    if folder.exists() and ((folder / STAGING).exists() or not (folder / APPLIED).exists()):
        _discard_staging(folder)
        return True
    return False


def _roll_back(root: Path) -> None:
    """Move every original in ``pending`` back, remove added files; repeatable after a kill at any point."""
    folder = _state_folder(root)
    pending = folder / PENDING
    state = _read_state(pending)
    if state is None:
        raise PatchError(f"{pending} holds no state.json; restore {root} from upstream and delete {folder}")
    _require_ours(root, pending, state)
    for file in state.files:
        backup = pending / "original" / file.path
        if backup.exists():
            # A restored file must look new: build tools compare times, and its objects hold the patched code.
            os.utime(backup)
            backup.replace(root / file.path)
        elif file.original_sha256 is None and _digest_file(root, file.path) == file.patched_sha256:
            (root / file.path).unlink()
    for name in reversed(state.new_folders):
        with contextlib.suppress(OSError):  # not made yet, or the user keeps files in it
            (root / name).rmdir()
    pending.rename(folder / STAGING)
    _discard_staging(folder)


def _require_ours(root: Path, pending: Path, state: TreeState) -> None:
    """Refuse to put an original over a file somebody changed after the interruption."""
    for file in state.files:
        refuse_links(root, file.path)
        refuse_links(root, f"{STATE_FOLDER}/{PENDING}/original/{file.path}")
        if (pending / "original" / file.path).exists():
            digest = _digest_file(root, file.path)
            if digest not in (None, file.patched_sha256, file.original_sha256):
                raise PatchError(
                    f"{root / file.path} was changed after an interrupted patch command; "
                    "move it away and run this again"
                )


def _discard_staging(folder: Path) -> None:
    """Delete ``staging`` and, when no patch is applied, the state folder unless it holds other files."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder / STAGING)
    if not (folder / APPLIED).exists():
        (folder / ".gitignore").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _state_folder(root: Path) -> Path:
    for name in (STAGING, PENDING, APPLIED):
        refuse_links(root, f"{STATE_FOLDER}/{name}")
    return root / STATE_FOLDER


def _read_state(folder: Path) -> TreeState | None:
    path = folder / "state.json"
    try:
        record = json.loads(path.read_bytes())
        return _parse_state(record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PatchError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PatchError(
            f"{path} is damaged ({error}); restore the tree from upstream and delete {STATE_FOLDER}/"
        ) from error


def _parse_state(record: dict[str, Any]) -> TreeState:
    if record["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version {record['schema_version']!r}, known is {SCHEMA_VERSION}")
    files = tuple(PatchedFile(**entry) for entry in record["files"])
    folders = tuple(str(name) for name in record["new_folders"])
    for path in (*(file.path for file in files), *folders):
        parts = PurePosixPath(path).parts
        if not parts or PurePosixPath(path).is_absolute() or ".." in parts or parts[0] == STATE_FOLDER:
            raise ValueError(f"path {path!r} leads out of the tree")
    return TreeState(
        str(record["series_digest"]),
        tuple(AppliedPatch(**entry) for entry in record["patches"]),
        files,
        folders,
    )


def _digest_file(root: Path, path: str) -> str | None:
    try:
        content = read_file(root, path)
    except LlamaError:
        return "not a readable regular file"
    return None if content is None else hashlib.sha256(content).hexdigest()


def _make_folders(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def _write(path: Path, content: bytes, mode: int) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(mode)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
