"""A llama.cpp source tree on disk: is it one, what it holds, its digest. No link is followed out of it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kvquant.errors import LlamaError

#: Written into a tree by ``fetch``: where it came from.
ORIGIN_FILE = ".kvquant-origin.json"

#: What is no part of the sources: version control, and what kvquant itself keeps in a tree.
NOT_SOURCE = frozenset({".git", ".kvquant", ORIGIN_FILE})

_PROJECT = b'project("llama.cpp"'


def open_tree(folder: str | Path) -> Path:
    """The absolute path of ``folder``. Raises LlamaError when it is no llama.cpp source tree."""
    root = Path(folder).absolute()
    if not root.is_dir():
        raise LlamaError(
            f"{folder} is not a folder; name a llama.cpp source tree, or run: kvquant llama fetch"
        )
    listing = read_file(root, "CMakeLists.txt")
    if listing is not None and _PROJECT in listing:
        return root
    vendored = root / "vendor" / "llama.cpp"
    hint = f"try {vendored}" if vendored.is_dir() else "run: kvquant llama fetch"
    raise LlamaError(
        f'{folder} is not a llama.cpp source tree: no CMakeLists.txt with project("llama.cpp"); {hint}'
    )


def read_file(root: Path, path: str) -> bytes | None:
    """The bytes of the regular file ``path`` (relative, forward slashes) under ``root``; None without one.

    Raises LlamaError when ``path`` is, or leads through, a link, or is something other than a file.
    """
    refuse_links(root, path)
    try:
        descriptor = os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LlamaError(f"cannot read {root / path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise LlamaError(f"{root / path} is not a regular file; restore it from upstream")
        return file.read()


def refuse_links(root: Path, path: str) -> None:
    """Raise LlamaError when ``path`` or a folder on the way to it, below ``root``, is a symbolic link."""
    step = root
    for part in path.split("/"):
        step = step / part
        if step.is_symlink():
            raise LlamaError(
                f"{step} is a symbolic link; replace it by what it points to, so nothing outside is touched"
            )


def source_files(root: Path) -> Iterator[str]:
    """Paths of all regular files of the tree, sorted, without version control and kvquant's own state."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in NOT_SOURCE)
        for name in sorted(names):
            path = Path(folder, name)
            if name not in NOT_SOURCE and not path.is_symlink() and path.is_file():
                yield path.relative_to(root).as_posix()


def digest_tree(root: Path) -> str:
    """SHA-256 over the path and content of every source file. Raises LlamaError when one cannot be read."""
    digest = hashlib.sha256()
    for path in source_files(root):
        try:
            content = (root / path).read_bytes()
        except OSError as error:
            raise LlamaError(f"cannot read {root / path}: {error.strerror}") from error
        digest.update(f"{path}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
        digest.update(content)
    return digest.hexdigest()
