"""An OpenAI-compatible endpoint inside the test's process, which can be made to fail in every way."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from evals.solvers import solve

Behaviour = Callable[[int, str], str]
"""(number of the request, prompt) to what happens: right, wrong, hang, drip, crash, cut, rubbish, list,
empty, refuse, status, length, nothing."""


def always(what: str) -> Behaviour:
    return lambda _number, _prompt: what


class FakeEndpoint(ThreadingHTTPServer):
    """Answers with the solvers. prompts: those asked, in order. models: what /models lists, None: 404."""

    daemon_threads = True

    def __init__(self, behaviour: Behaviour, models: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour, self.models = behaviour, models
        self.prompts: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint

    def answer(self, status: int, body: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        models = self.server.models
        if models is None:
            self.answer(404, {"error": {"message": "no such path"}})
        else:
            listed = {"data": [{"id": name} for name in models]} if isinstance(models, list) else models
            self.answer(200, listed)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.server.bodies.append(body)
        self.server.prompts.append(prompt)
        what = self.server.behaviour(len(self.server.prompts), prompt)
        if what == "hang":
            self.server.stopping.wait(30)
        elif what == "drip":
            self.send_response(200)
            self.end_headers()
            while not self.server.stopping.wait(0.05):
                self.wfile.write(b" ")
        elif what == "crash":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif what == "cut":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        elif what == "rubbish":
            self.answer(200, b"<html>not JSON</html>")
        elif what == "list":
            self.answer(200, [])
        elif what == "empty":
            self.answer(200, {"choices": []})
        elif what == "status":
            self.answer(500, {"error": {"message": "the model\nis not loaded"}})
        else:
            self.answer(200, completion(what, prompt))

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


def completion(what: str, prompt: str) -> dict[str, Any]:
    """The JSON of a chat completion."""
    texts = {"wrong": "Answer: 123456789", "refuse": "I'm sorry, I can't help with that.", "nothing": ""}
    message: dict[str, Any] = {"role": "assistant", "content": texts.get(what)}
    reason = "stop"
    if what in {"right", "length"}:
        reply = solve(prompt)
        message["content"] = f"<think>hm</think>{reply.text}"
        if reply.tool_calls:
            message["content"] = None
            message["tool_calls"] = [
                {"id": "1", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in reply.tool_calls
            ]
        reason = "length" if what == "length" else reply.finish_reason or "stop"
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 7}
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": usage}


@contextmanager
def fake_endpoint(behaviour: Behaviour | str = "right", models: Any = ("fake",)) -> Iterator[FakeEndpoint]:
    """Serve for the length of the block."""
    chosen = always(behaviour) if isinstance(behaviour, str) else behaviour
    server = FakeEndpoint(chosen, list(models) if isinstance(models, tuple) else models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
