"""Small source distributions that carry a llama.cpp-like tree, and pins for them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

from kvquant.llama.pin import Pin, Sdist

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOP = "llama_cpp_python-9.9.9"

PYPROJECT = b"""
[build-system]
requires = ["scikit-build-core[pyproject]>=0.9.2"]
build-backend = "scikit_build_core.build"
[project]
name = "llama_cpp_python"
version = "9.9.9"
"""

FILES = {
    "PKG-INFO": b"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 9.9.9\n",
    "pyproject.toml": PYPROJECT,
    "vendor/llama.cpp/CMakeLists.txt": b'project("llama.cpp" C CXX)\n',
    "vendor/llama.cpp/src/llama.cpp": b"int llama;\n",
    "vendor/llama.cpp/scripts/run.sh": b"#!/bin/sh\n",
    "vendor/llama.cpp/.git": b"gitdir: ../../.git/modules/vendor/llama.cpp\n",
    "vendor/other/file": b"not llama.cpp\n",
}


def regular(name: str, content: bytes = b"", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(f"{TOP}/{name}")
    member.size, member.mode = len(content), mode
    return member, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(f"{TOP}/{name}")
    member.type, member.linkname = kind, target
    return member, b""


def write_sdist(folder: Path, *more: tuple[tarfile.TarInfo, bytes]) -> Path:
    """``FILES`` and then ``more`` members as a source distribution."""
    members = [
        regular(name, content, 0o755 if name.endswith(".sh") else 0o644) for name, content in FILES.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{TOP}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for member, content in [*members, *more]:
            tar.addfile(member, io.BytesIO(content))
    return path


def pin_for(archive: Path, repository: str = "https://example.invalid/llama.cpp") -> Pin:
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Pin(repository, COMMIT, (Sdist("llama-cpp-python", "9.9.9", COMMIT, sha256),))
