"""An OpenAI-compatible endpoint inside the test's process, which can be made to fail in every way."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from evals.solvers import solve


@dataclass(frozen=True)
class Sent:
    """An answer sent as it is. body: JSON, or bytes."""

    status: int
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def error(status: int, message: str, **headers: str) -> Sent:
    """A failure as OpenAI and llama-server word it."""
    body = {"error": {"message": message, "code": status}}
    return Sent(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


LOADING = error(503, "Loading model")

Behaviour = Callable[[int, str], str | Sent]
"""(number of the request, prompt) to what happens: right, wrong, hang, drip, crash, reset, cut, rubbish,
list, empty, refuse, length, thinking, nothing; or what is sent."""


def always(what: str | Sent) -> Behaviour:
    return lambda _number, _prompt: what


class FakeEndpoint(ThreadingHTTPServer):
    """Answers with the solvers. prompts: those asked, in order. models: what /models lists, None: 404, or a
    function that says what is sent. key: what it wants to be given. keys: what it was given.
    """

    daemon_threads = True

    def __init__(self, behaviour: Behaviour, models: Any, key: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour, self.models, self.key = behaviour, models, key
        self.keys: list[str | None] = []
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

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def is_locked_out(self) -> bool:
        """Answer a request without the key, which is repeated as some endpoints do."""
        given, wanted = self.headers.get("Authorization"), self.server.key
        self.server.keys.append(given)
        if wanted is None or given == f"Bearer {wanted}":
            return False
        self.answer(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
        return True

    def do_GET(self) -> None:
        models = self.server.models
        if self.is_locked_out():
            return
        if callable(models):
            models = models()
        if isinstance(models, Sent):
            self.answer(models.status, models.body, models.headers)
        elif models is None or self.path != "/v1/models":
            self.answer(404, {"error": {"message": "no such path"}})
        else:
            listed = {"data": [{"id": name} for name in models]} if isinstance(models, list) else models
            self.answer(200, listed)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.is_locked_out():
            return
        if self.path != "/v1/chat/completions":
            self.answer(404, {"error": {"message": "File Not Found"}})
            return
        prompt = body["messages"][0]["content"]
        self.server.bodies.append(body)
        self.server.prompts.append(prompt)
        what = self.server.behaviour(len(self.server.prompts), prompt)
        if isinstance(what, Sent):
            self.answer(what.status, what.body, what.headers)
        elif what == "hang":
            self.server.stopping.wait(30)
        elif what == "drip":
            self.send_response(200)
            self.end_headers()
            while not self.server.stopping.wait(0.05):
                self.wfile.write(b" ")
        elif what == "crash":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif what == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif what == "cut":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        elif what == "rubbish":
            self.answer(200, b"<html>not JSON</html>")
        elif what == "list":
            self.answer(200, [])
        elif what == "empty":
            self.answer(200, {"choices": []})
        else:
            self.answer(200, completion(what, prompt))

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


def completion(what: str, prompt: str) -> dict[str, Any]:
    """The JSON of a chat completion."""
    texts = {"wrong": "Answer: 123456789", "refuse": "I'm sorry, I can't help with that.", "nothing": ""}
    message: dict[str, Any] = {"role": "assistant", "content": texts.get(what)}
    if what == "thinking":
        message |= {"content": "", "reasoning_content": "Let me see."}
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
def fake_endpoint(
    behaviour: Behaviour | str | Sent = "right", models: Any = ("fake",), key: str | None = None
) -> Iterator[FakeEndpoint]:
    """Serve for the length of the block."""
    chosen = behaviour if callable(behaviour) else always(behaviour)
    server = FakeEndpoint(chosen, list(models) if isinstance(models, tuple) else models, key)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
