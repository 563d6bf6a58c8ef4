"""An OpenAI-compatible endpoint: which models it serves, and one chat completion at a time."""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from kvquant.errors import EndpointError, UsageError
from kvquant.evals.answers import shown
from kvquant.evals.reply import Reply, ToolCall

MODELS_SECONDS = 30.0
_MAX_ANSWER_BYTES = 16 * 2**20


class EndpointTimeout(EndpointError):
    """No complete answer in time."""


class EndpointUnreachable(EndpointError):
    """Nobody listens there."""


class Endpoint:
    """One endpoint. base_url: up to and including the version, such as http://127.0.0.1:8080/v1."""

    def __init__(self, base_url: str, timeout_seconds: float) -> None:
        """Raises UsageError for anything that is not an http or https URL."""
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"--base-url {base_url!r}: give a URL such as http://127.0.0.1:8080/v1")
        self.base_url = base_url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        # No proxy is asked for an address on this machine, whatever the environment says.
        handlers = [urllib.request.ProxyHandler({})] if _is_loopback(parts.hostname) else []
        self._opener = urllib.request.build_opener(*handlers)

    def models(self) -> list[str] | None:
        """Return the names of the models it serves; None when it has no such list (HTTP 404 or 405)."""
        request = urllib.request.Request(f"{self.base_url}/models")
        try:
            document = self._json(request, min(MODELS_SECONDS, self.timeout_seconds))
            return [str(entry["id"]) for entry in document["data"]]
        except _NoSuchPath:
            return None
        except (KeyError, TypeError) as error:
            raise EndpointError(
                f"{self.base_url}/models answers something that is no list of models"
            ) from error

    def choose_model(self, name: str | None) -> str:
        """Return ``name`` if it is served, or the only model when no name is given. Raises UsageError."""
        served = self.models()
        if served is None:
            if name is None:
                raise UsageError(f"{self.base_url} does not list its models; name one with --model")
            return name
        known = ", ".join(served) or "none"
        if name is None:
            if len(served) != 1:
                raise UsageError(f"{self.base_url} serves {len(served)} models; choose with --model: {known}")
            return served[0]
        if name not in served:
            raise UsageError(f"{self.base_url} serves no model {name!r}; it serves: {known}")
        return name

    def chat(
        self, model: str, prompt: str, tools: Sequence[Mapping[str, Any]], max_tokens: int, seed: int
    ) -> Reply:
        """Ask one question, greedy. Raises EndpointTimeout, EndpointUnreachable or EndpointError."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "seed": seed,
            "stream": False,
        }
        if tools:
            body["tools"] = list(tools)
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.base_url}/chat/completions", data, headers)
        document = self._json(request, self.timeout_seconds)
        try:
            return _reply(document)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EndpointError(f"not a chat completion: {shown(json.dumps(document))}") from error

    def _json(self, request: urllib.request.Request, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        try:
            with self._opener.open(request, timeout=seconds) as answer:
                data = _read(answer, deadline)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in {404, 405} and request.data is None:
                    raise _NoSuchPath from error
                raise EndpointError(f"HTTP status {error.code}: {_message(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, seconds) from error
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise EndpointError(f"not JSON: {shown(data[:100].decode('utf-8', 'replace'))}") from error

    def _broken(self, error: Exception, seconds: float) -> EndpointError:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return EndpointTimeout(f"no complete answer within {seconds:g} s")
        if isinstance(error, urllib.error.URLError):
            # Only what goes wrong before the request is out is wrapped in a URLError.
            why = getattr(reason, "strerror", None) or reason
            return EndpointUnreachable(f"{self.base_url} cannot be reached: {why}")
        return EndpointError(f"the connection broke: {' '.join(str(error).split()) or type(error).__name__}")


class _NoSuchPath(Exception):
    """The endpoint does not offer what was asked for."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read the body. The socket's own time limit is for one piece; a server that drips would never end."""
    pieces = []
    n_bytes = 0
    while piece := answer.read1(2**16):
        pieces.append(piece)
        n_bytes += len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
        if n_bytes > _MAX_ANSWER_BYTES:
            raise EndpointError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
    if answer.length:
        raise http.client.IncompleteRead(b"".join(pieces), answer.length)
    return b"".join(pieces)


def _message(error: urllib.error.HTTPError) -> str:
    """What the endpoint says about its failure, in one short line."""
    try:
        data = error.read(2**16)
    except (OSError, http.client.HTTPException):
        return error.reason
    try:
        text = str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        text = data.decode("utf-8", "replace") or error.reason
    return " ".join(text.split())[:200]


def _reply(document: Any) -> Reply:
    choice = document["choices"][0]
    message = choice["message"]
    text = message.get("content")
    if not isinstance(text, str | None):
        raise TypeError("content")
    calls = tuple(_tool_call(call["function"]) for call in message.get("tool_calls") or ())
    reason, usage = choice.get("finish_reason"), document.get("usage") or {}
    n_prompt, n_completion = (_count(usage, f"{what}_tokens") for what in ("prompt", "completion"))
    return Reply(text or "", calls, None if reason is None else str(reason), n_prompt, n_completion)


def _count(usage: Any, key: str) -> int | None:
    """A count the endpoint reports, if it does."""
    found = usage.get(key) if isinstance(usage, dict) else None
    return found if isinstance(found, int) else None


def _tool_call(function: Any) -> ToolCall:
    """A call; some endpoints send the arguments as an object instead of its text."""
    arguments = function["arguments"]
    return ToolCall(str(function["name"]), arguments if isinstance(arguments, str) else json.dumps(arguments))
