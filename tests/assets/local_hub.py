"""A Hugging Face endpoint on loopback: one file of one repository, as the hub's client asks for it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPOSITORY, FILE = "owner/tiny-GGUF", "tiny.gguf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A running endpoint. paths: of all requests. starts: first bytes of the downloads. cut_at: bytes after
    which a download stalls.
    """

    url: str
    content: bytes
    paths: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    cut_at: int | None = None
    stalled: threading.Event = field(default_factory=threading.Event)


@contextmanager
def served_hub(content: bytes) -> Iterator[Hub]:
    """Serve ``content`` as FILE of REPOSITORY at any revision, on a free port of this machine."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            hub.paths.append(self.path)
            found = self.path.startswith(f"/{REPOSITORY}/resolve/") and self.path.endswith(f"/{FILE}")
            if not found:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if first else 200)
            self.send_header("ETag", f'"{hashlib.sha256(hub.content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            if first:
                last = len(hub.content) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(hub.content)}")
            self.send_header("Content-Length", str(len(hub.content) - first))
            self.end_headers()
            if not body:
                return
            hub.starts.append(first)
            self.wfile.write(hub.content[first : hub.cut_at])
            self.wfile.flush()
            if hub.cut_at is not None:
                hub.stalled.set()
                self.close_connection = True
                released.wait(60)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", content)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()
