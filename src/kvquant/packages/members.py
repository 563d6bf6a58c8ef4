"""Reads members of archives as data: nothing is installed, imported, or written under a name it chooses."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
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
            raise AssetError(f"{wheel.name}: {member} does not have the {n_bytes} bytes that it should have")
        with archive.open(member) as content:
            while left and (chunk := content.read(min(left, _CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk
    if left:
        raise AssetError(f"{wheel.name}: {member} ends {left} bytes early")


def read_members(archive: Path, members: Sequence[str], *, max_n_bytes: int = 64 * 1024**2) -> list[bytes]:
    """Return the content of members of a wheel or a source distribution (tar.gz), in the order asked for.

    Raises AssetError when one is missing, damaged or larger than ``max_n_bytes``.
    """
    if archive.suffix == ".gz":
        return _read_from_tar(archive, members, max_n_bytes)
    found = []
    for member in members:
        with _opened(archive, member) as opened:
            n_bytes = opened.getinfo(member).file_size
        _require_size(archive, member, n_bytes, max_n_bytes)
        found.append(b"".join(member_chunks(archive, member, n_bytes)))
    return found


def _read_from_tar(archive: Path, members: Sequence[str], max_n_bytes: int) -> list[bytes]:
    wanted, found = set(members), {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                if entry.name in wanted and entry.isfile():
                    _require_size(archive, entry.name, entry.size, max_n_bytes)
                    content = tar.extractfile(entry)
                    found[entry.name] = content.read() if content is not None else b""
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise AssetError(f"{archive.name}: is damaged: {error}") from error
    missing = sorted(wanted - found.keys())
    if missing:
        raise AssetError(f"{archive.name}: holds no {missing[0]}")
    return [found[member] for member in members]


def _require_size(archive: Path, member: str, n_bytes: int, max_n_bytes: int) -> None:
    if n_bytes > max_n_bytes:
        raise AssetError(f"{archive.name}: {member} is larger than {max_n_bytes} bytes; refused")


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
