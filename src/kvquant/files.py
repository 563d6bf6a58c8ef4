"""Writing results so that a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kvquant.errors import KVQuantError


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Replace the file at ``path`` by ``content`` (text as UTF-8); see `replacing`."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes ``path`` when the block ends, through a temporary file beside it.

    Raises KVQuantError when the folder is missing, not writable, or the disk is full; the old file stays
    then, and when the block raises.
    """
    target = Path(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise KVQuantError(f"cannot write {target}: {error.strerror}; choose a writable folder") from error
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        if isinstance(error, OSError):
            raise KVQuantError(f"cannot write {target}: {error.strerror}") from error
        raise
