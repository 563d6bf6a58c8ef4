"""Takes the llama.cpp tree out of a source distribution, trusting nothing in it but a verified checksum."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from kvquant.errors import LlamaError

#: Limits for one tree. That of b11434 has 3,974 files and 217 MB, its largest file 38 MB.
MAX_FILES = 20_000
MAX_FILE_BYTES = 256 * 1024**2
MAX_TOTAL_BYTES = 1024**3

_CHUNK_BYTES = 1024**2


def file_sha256(path: Path) -> str:
    """The file's SHA-256, lower-case hex. Raises LlamaError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LlamaError(f"cannot read {path}: {error.strerror}") from error


def verify_sha256(path: Path, sha256: str) -> None:
    """Raise LlamaError unless the file's SHA-256 is ``sha256`` (lower-case hex)."""
    found = file_sha256(path)
    if found != sha256:
        raise LlamaError(f"{path} has SHA-256 {found}, wanted {sha256}; delete it and fetch again")


def extract_tree(
    archive: Path, folder: tuple[str, ...], target: Path, *, only: Collection[str] | None = None
) -> int:
    """Write ``folder`` of the archive's top folder into the new ``target``; the number of files written.

    only: the paths in the tree to write, None for all. Only plain files and folders are taken, with new times
    and only the executable bit of their modes. Raises LlamaError on anything else below that folder, on paths
    that lead out of it, and past the size limits.
    """
    n_files = n_bytes = 0
    target.mkdir()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member, path in _files_below(archive, folder, tar):
                if only is not None and path.as_posix() not in only:
                    continue
                n_files += 1
                n_bytes += member.size
                if n_files > MAX_FILES or member.size > MAX_FILE_BYTES or n_bytes > MAX_TOTAL_BYTES:
                    raise LlamaError(
                        f"{archive}: {member.name} goes past the limits of {MAX_FILES} files, "
                        f"{MAX_FILE_BYTES} "
                        f"bytes a file and {MAX_TOTAL_BYTES} bytes in all; this is not llama.cpp's source"
                    )
                _write_member(tar, member, target / path)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise LlamaError(f"cannot unpack {archive}: {error}") from error
    if not n_files:
        raise LlamaError(
            f"{archive} holds no {'/'.join(folder)}; give the source distribution that was asked for"
        )
    return n_files


def _files_below(
    archive: Path, folder: tuple[str, ...], tar: tarfile.TarFile
) -> Iterator[tuple[tarfile.TarInfo, Path]]:
    """The plain files below ``folder``, each with its checked path inside the tree."""
    depth = 1 + len(folder)
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if parts[1:depth] != folder or len(parts) <= depth or parts[depth] == ".git":
            continue
        if ".." in parts or member.name.startswith("/") or "\0" in member.name:
            raise LlamaError(f"{archive}: the path {member.name!r} leads out of the tree; refused")
        if member.isfile():
            yield member, Path(*parts[depth:])
        elif not member.isdir():
            raise LlamaError(
                f"{archive}: {member.name!r} is a link or device; only files and folders are taken"
            )


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise LlamaError(f"{member.name!r} has no content")
    # Mode x: a second member of the same name is an error, not an overwrite.
    with source, path.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)
