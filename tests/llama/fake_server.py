"""Stands in for llama-server in tests that need no model: speaks its log lines and a few of its answers."""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

MODE = os.environ.get("FAKE_SERVER_MODE", "good")
SLOTS = Path(sys.argv[sys.argv.index("--slot-save-path") + 1])


class Handler(BaseHTTPRequestHandler):
    def answer(self, status: int, body: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if MODE == "crash":
            print("/x.cpp:1: GGML_ASSERT(n > 0) failed", flush=True)
            os._exit(134)
        if MODE == "garbage":
            self.answer(200, b"not json")
        elif MODE == "list":
            self.answer(200, [])
        elif MODE == "error":
            self.answer(400, {"error": {"message": "the request exceeds\nthe context"}})
        elif MODE == "bare-error":
            self.answer(500, b"")
        elif self.path.startswith("/tokenize"):
            self.answer(200, {"tokens": list(body["content"].encode())})
        elif "action=save" in self.path:
            (SLOTS / body["filename"]).write_bytes(b"saved")
            self.answer(200, {})
        else:
            self.answer(200, {"argv": sys.argv[1:], "path": self.path, "body": body})

    def log_message(self, format: str, *args: object) -> None:
        pass


if MODE == "fail":
    print("0.00.001.000 E main: no such model type")
    sys.exit(3)
server = HTTPServer(("127.0.0.1", 0), Handler)
if MODE != "silent":
    print(f"0.00.010.000 I srv: listening on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
