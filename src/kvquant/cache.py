"""Where downloads, sources and builds are kept: ``.cache/`` of the clone, or the user's cache folder."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvquant.errors import KVQuantError
from kvquant.shipped import checkout_root

ENVIRONMENT_VARIABLE = "KVQUANT_CACHE"


def cache_folder() -> Path:
    """The folder for everything that can be made again: ``$KVQUANT_CACHE``, the clone's ``.cache``, or the
    user's.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(named).absolute()
    root = checkout_root()
    if root is not None:
        return root / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvquant"


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those above it. Raises KVQuantError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KVQuantError(f"cannot make the folder {folder}: {error.strerror}") from error


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder inside ``parent``, so that a rename to a place there is atomic; deleted at the end, also on
    errors.

    What fails on the disk while it is in use is raised as KVQuantError.
    """
    try:
        with tempfile.TemporaryDirectory(
            prefix=".unfinished-", dir=parent, ignore_cleanup_errors=True
        ) as name:
            yield Path(name)
    except OSError as error:
        raise KVQuantError(f"cannot work in {parent}: {error.strerror or error}") from error


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold ``folder`` for this process, waiting for another one that does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another kvquant that is working in {folder}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
