"""Reads members of a wheel as data: nothing is installed, imported, or written under a name it chooses."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvquant.errors import AssetError

_CHUNK_BYTES = 1024**2


def member_chunks(wheel: Path, member: str, n_bytes: int) -> Iterator[bytes]:
    """Yield the content of one member, exactly ``n_bytes`` of it, in pieces of up to 1 MiB.

    Never reads past ``n_bytes``, whatever the archive claims. Raises AssetError when the member is missing,
    damaged or of another size.
    """
    left = n_bytes
    with _opened(wheel, member) as archive:
        if archive.getinfo(member).file_size != n_bytes:
            raise AssetError(f"{wheel.name}: {member} does not have the {n_bytes} bytes that it must have")
        with archive.open(member) as content:
            while left and (chunk := content.read(min(left, _CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk
    if left:
        raise AssetError(f"{wheel.name}: {member} ends {left} bytes early")


def read_member(wheel: Path, member: str, *, max_n_bytes: int = 64 * 1024**2) -> bytes:
    """Return the content of one member. Raises AssetError when it is missing, damaged or too large."""
    with _opened(wheel, member) as archive:
        n_bytes = archive.getinfo(member).file_size
    if n_bytes > max_n_bytes:
        raise AssetError(f"{wheel.name}: {member} is larger than {max_n_bytes} bytes; refused")
    return b"".join(member_chunks(wheel, member, n_bytes))


@contextmanager
def _opened(wheel: Path, member: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except KeyError as error:
        raise AssetError(f"{wheel.name}: holds no {member}") from error
    # RuntimeError: an encrypted member; NotImplementedError: a compression that zipfile does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise AssetError(f"{wheel.name}: is damaged: {error}") from error
    except OSError as error:
        raise AssetError(f"{wheel}: cannot be read: {error.strerror or error}") from error
