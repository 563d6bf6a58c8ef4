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
from dataclasses import dataclass
from typing import Any

from kvquant.errors import EndpointError, UsageError
from kvquant.evals.completion import parse_completion, parse_json
from kvquant.evals.reply import Reply

MODELS_SECONDS = 30.0
_MAX_ANSWER_BYTES = 16 * 2**20


class EndpointTimeout(EndpointError):
    """No complete answer in time."""


class EndpointUnreachable(EndpointError):
    """Nobody listens there."""


@dataclass(frozen=True)
class ServedModel:
    """A model and what the endpoint's list says about it, None without a list."""

    name: str
    report: Mapping[str, Any] | None


class Endpoint:
    """One endpoint. base_url: up to and including the version, such as http://127.0.0.1:8080/v1."""

    def __init__(self, base_url: str, timeout_seconds: float) -> None:
        """Raises UsageError for anything that is not an http or https URL."""
        host = _host(base_url)
        if host is None:
            raise UsageError(f"--base-url {base_url!r}: give a URL such as http://127.0.0.1:8080/v1")
        self.base_url = base_url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        # No proxy is asked for an address on this machine, whatever the environment says.
        handlers = [urllib.request.ProxyHandler({})] if _is_loopback(host) else []
        self._opener = urllib.request.build_opener(*handlers)

    def models(self) -> list[ServedModel] | None:
        """Return the models it serves; None when it has no such list (HTTP 404 or 405)."""
        request = urllib.request.Request(f"{self.base_url}/models")
        try:
            document = self._json(request, min(MODELS_SECONDS, self.timeout_seconds))
            return [ServedModel(str(entry["id"]), dict(entry)) for entry in document["data"]]
        except _NoSuchPath:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise EndpointError(f"{self.base_url}/models answers with no list of models") from error

    def choose_model(self, name: str | None) -> ServedModel:
        """Return the model called ``name``, or the only one when no name is given. Raises UsageError."""
        served = self.models()
        if served is None:
            if name is None:
                raise UsageError(f"{self.base_url} does not list its models; name one with --model")
            return ServedModel(name, None)
        known = ", ".join(model.name for model in served) or "none"
        if name is None:
            if len(served) != 1:
                raise UsageError(f"{self.base_url} serves {len(served)} models; choose with --model: {known}")
            return served[0]
        chosen = next((model for model in served if model.name == name), None)
        if chosen is None:
            raise UsageError(f"{self.base_url} serves no model {name!r}; it serves: {known}")
        return chosen

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
        return parse_completion(self._json(request, self.timeout_seconds))

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
        return parse_json(data)

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


def _host(url: str) -> str | None:
    """The host of a usable http or https URL."""
    try:
        parts = urllib.parse.urlsplit(url)
        # Asking for the port checks it.
        return parts.hostname if parts.scheme in {"http", "https"} and parts.port != 0 else None
    except ValueError:
        return None


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
