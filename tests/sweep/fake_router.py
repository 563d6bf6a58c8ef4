"""llama-server in router mode, inside the test's process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STATES = {"a": "unloaded", "b": "loaded", "broken": "unloaded"}


class FakeRouter(ThreadingHTTPServer):
    """States by model; ``broken`` never loads. asked: paths."""

    daemon_threads = True

    def __init__(self, states: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.states = dict(states)
        self.failed: set[str] = set()
        self.asked: list[str] = []
        self.plain = False


class _Handler(BaseHTTPRequestHandler):
    server: FakeRouter

    def do_GET(self) -> None:
        data: list[dict[str, Any]] = [{"id": "x"}]
        if not self.server.plain:
            data = [
                {"id": name, "status": {"value": state, "failed": name in self.server.failed, "args": ["s"]}}
                for name, state in self.server.states.items()
            ]
        self.answer(200, {"data": data})

    def do_POST(self) -> None:
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        self.server.asked.append(f"{self.path} {name}")
        if self.headers.get("Authorization") == "Bearer wrong":
            self.answer(401, {"error": {"message": "Invalid API Key"}})
            return
        if name == "broken":
            self.server.failed.add(name)
        else:
            self.server.states[name] = "loaded" if self.path.endswith("/load") else "unloaded"
        self.answer(200, {"success": True})

    def answer(self, status: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def fake_router(states: Mapping[str, str] = STATES) -> Iterator[tuple[FakeRouter, str]]:
    """Serve for the length of the block; its address comes without /v1."""
    server = FakeRouter(states)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
