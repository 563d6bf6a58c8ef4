"""An append-only JSONL file in a folder that one kvquant at a time works in: a line is on the disk when it is
written, and a last line without its end, cut off by a kill or a full disk, is passed over and removed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from kvquant.errors import KVQuantError, UsageError

LOCK_NAME = "lock"


class DamagedLine(KVQuantError):
    """A line that holds something else than it should; `parse_lines` adds which one."""


class LineWriter:
    """Appends to an open file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def write(self, line: Mapping[str, Any], kept: str) -> None:
        """Write one line; it is on the disk when this returns.

        Raises KVQuantError on a full disk; ``kept`` says what is safe.
        """
        data = json.dumps(line, ensure_ascii=True, allow_nan=False).encode() + b"\n"
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise KVQuantError(
                f"cannot write {self._path}: {error.strerror}; {kept}, run the same command again to resume"
            ) from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make ``folder`` where it is missing and hold it for this process.

    Raises UsageError while another kvquant holds it, KVQuantError when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_NAME).open("ab")
    except OSError as error:
        raise KVQuantError(f"cannot write in {folder}: {error.strerror}; choose a writable folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another kvquant is running in {folder}; wait for it or give another --out"
            ) from None
        yield


@contextmanager
def appending(path: Path, check: Callable[[bytes], None]) -> Iterator[LineWriter]:
    """Open ``path`` to go on writing at the end of its last whole line.

    check: is given the whole lines first and raises when they must not be added to; the file is then as it
    was. A file without a line is removed again. Raises KVQuantError when the file cannot be written.
    """
    try:
        file = path.open("a+b")
    except OSError as error:
        raise KVQuantError(f"cannot write {path}: {error.strerror}") from error
    with file:
        file.seek(0)
        data = whole_lines(file.read())
        check(data)
        file.truncate(len(data))
        try:
            yield LineWriter(file, path)
        finally:
            if file.seek(0, os.SEEK_END) == 0:
                path.unlink(missing_ok=True)


def whole_lines(data: bytes) -> bytes:
    """Return ``data`` up to the end of its last line."""
    return data[: data.rfind(b"\n") + 1]


def parse_lines(data: bytes, path: Path, read: Callable[[dict[str, Any]], None]) -> None:
    """Give the object of every line to ``read``. Raises KVQuantError naming the line that is damaged."""
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            document = json.loads(line)
            if not isinstance(document, dict):
                raise TypeError("no object")
            read(document)
        except (DamagedLine, ValueError, TypeError, KeyError, AttributeError) as error:
            raise KVQuantError(
                f"{path}: line {number} is damaged; remove that line to continue without it"
            ) from error
