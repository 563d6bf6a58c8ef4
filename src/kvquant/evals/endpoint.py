"""An OpenAI-compatible endpoint: which models it serves, and one chat completion at a time.

What can go wrong is told apart, because it means different things for a run: `EndpointFailed` passes and
is asked again (kvquant.evals.patience), `EndpointRefused` needs another command, `EndpointTimeout` is an
outcome.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from kvquant.errors import EndpointError, UsageError
from kvquant.evals.reply import UNPARSED, Reply, parse_completion, parse_json

if TYPE_CHECKING:
    import httpx2

MODELS_SECONDS = 30.0
_MAX_ANSWER_BYTES = 16 * 2**20

_PASSES = {408, 425, 429}
"""Statuses below 500 that a later request may not get; above, all but 501 (not supported)."""

_UNPARSED = re.compile(r"the model produced output that does not match", re.IGNORECASE)
"""llama-server's words, with status 500, for an answer that its own parser of chat formats cannot read."""


class EndpointTimeout(EndpointError):
    """No complete answer in time."""


class EndpointUnreachable(EndpointError):
    """Nobody listens there."""


class EndpointGone(EndpointError):
    """It has ended for good; asking again is no use."""


class EndpointRefused(EndpointError):
    """It answers, and will answer alike whenever asked so: the command has to be changed."""


class _UnparsedAnswer(EndpointError):
    """The model has answered, in what its server takes for a broken form of its own format."""


class EndpointFailed(EndpointError):
    """It failed in a way that passes. retry_after: seconds it asks to wait, if it says."""

    def __init__(self, message: str, *, retry_after: float | None = None, is_loading: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_loading = is_loading


@dataclass(frozen=True)
class ApiKey:
    """A key for the endpoint, and the environment variable it came from. Never shown, never recorded."""

    variable: str
    value: str = field(repr=False)


@dataclass(frozen=True)
class ServedModel:
    """A model and what the endpoint's list says about it, None without a list."""

    name: str
    report: Mapping[str, Any] | None


class Endpoint:
    """One endpoint. base_url: up to and including the version, such as http://127.0.0.1:8080/v1."""

    def __init__(self, base_url: str, timeout_seconds: float, key: ApiKey | None = None) -> None:
        """Raises UsageError for anything that is not a plain http or https URL."""
        import httpx2  # only here: most commands talk to nobody

        url = plain_url(base_url)
        self.base_url = base_url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        self._key = key
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key.value}"} if key else {},
            # No proxy is asked for an address on this machine, whatever the environment says.
            trust_env=not is_loopback(url.hostname or ""),
            # Each request has a connection of its own, so that a broken one is never an old one.
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def models(self) -> list[ServedModel] | None:
        """Return the models it serves; None when it has no such list (HTTP 404 or 405)."""
        status, document = self._ask("GET", "/models", None, min(MODELS_SECONDS, self.timeout_seconds))
        if status in {404, 405}:
            return None
        try:
            return [ServedModel(str(entry["id"]), dict(entry)) for entry in document["data"]]
        except (KeyError, TypeError, ValueError) as error:
            raise EndpointError(f"{self.base_url}/models does not answer with a list of models") from error

    def choose_model(self, name: str | None) -> ServedModel:
        """Return the model called ``name``, or the only one when no name is given. Raises UsageError."""
        served = self.models()
        if served is None:
            if name is None:
                hint = self._version_hint("; ")
                raise UsageError(f"{self.base_url} does not list its models{hint}; name one with --model")
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
        """Ask one question, greedy, once.

        Raises EndpointTimeout, EndpointUnreachable, EndpointRefused or EndpointFailed.
        """
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
        try:
            _, document = self._ask("POST", "/chat/completions", body, self.timeout_seconds)
        except _UnparsedAnswer as error:
            return Reply(str(error), finish_reason=UNPARSED)
        try:
            return parse_completion(document)
        except EndpointError as error:
            raise EndpointFailed(str(error)) from error

    def post_lines(self, path: str, body: object) -> Iterator[str]:
        """POST ``body`` and yield the lines of a streamed answer as they come. Raises as `chat` does."""
        deadline = time.monotonic() + self.timeout_seconds
        with (
            self._told_apart(self.timeout_seconds),
            self._client.stream(
                "POST", self.base_url + path, json=body, timeout=self.timeout_seconds
            ) as answer,
        ):
            if answer.status_code != 200:
                raise self._failure(answer, _read(answer, deadline))
            for line in answer.iter_lines():
                if time.monotonic() > deadline:
                    raise TimeoutError
                yield line

    def _ask(self, method: str, path: str, body: object, seconds: float) -> tuple[int, Any]:
        """Return the status, 200 or, of a GET, 404 or 405, and the JSON that came with a 200."""
        deadline = time.monotonic() + seconds
        with (
            self._told_apart(seconds),
            self._client.stream(method, self.base_url + path, json=body, timeout=seconds) as answer,
        ):
            data = _read(answer, deadline)
        status = answer.status_code
        if method == "GET" and status in {404, 405}:
            return status, None
        if status != 200:
            raise self._failure(answer, data)
        try:
            return status, parse_json(data)
        except EndpointError as error:
            raise EndpointFailed(str(error)) from error

    def _failure(self, answer: httpx2.Response, data: bytes) -> EndpointError:
        """Return what a status other than 200 means."""
        status, text = (
            answer.status_code,
            self._without_key((_message(data) or answer.reason_phrase).rstrip(".")),
        )
        if _UNPARSED.search(text):
            return _UnparsedAnswer(text)
        said = f"HTTP status {status}: {text}".rstrip(": ")
        if status in _PASSES or (status >= 500 and status != 501):
            is_loading = status == 503 and "loading" in text.lower()
            after = _retry_after(answer.headers.get("Retry-After"))
            return EndpointFailed(said, retry_after=after, is_loading=is_loading)
        return EndpointRefused(f"{self.base_url}: {said}; {self._what_to_change(answer, text)}")

    def _what_to_change(self, answer: httpx2.Response, text: str) -> str:
        status = answer.status_code
        if answer.is_redirect:
            to = answer.headers.get("Location", "another address")
            return (
                f"it sends on to {self._without_key(_short(to))}: give the address where it is as --base-url"
            )
        if status in {401, 403}:
            if self._key is None:
                return "set OPENAI_API_KEY to its key, or name another variable with --api-key-env"
            return f"the key in {self._key.variable} is not the right one, or may not do this"
        if status in {404, 405}:
            return self._version_hint() or "check --base-url and --model"
        if "context" in text.lower():
            return "give the server a larger context (llama-server -c), or ask a suite of shorter questions"
        return "change what it names: the model, the server's options, or the suite"

    def _version_hint(self, before: str = "") -> str:
        """Say how such a URL ends, where this one does not."""
        if re.search(r"/v\d+\w*$", self.base_url):
            return ""
        return f"{before}the URL should end in /v1: --base-url {self.base_url}/v1"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key.value, "***") if self._key else text

    @contextmanager
    def _told_apart(self, seconds: float) -> Iterator[None]:
        """Turn what the client raises into errors of this module."""
        import httpx2

        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            why = re.sub(r"^\[Errno -?\d+\] ", "", _short(error)) or "no connection in time"
            raise EndpointUnreachable(f"{self.base_url} cannot be reached: {why}") from error
        except (httpx2.TimeoutException, TimeoutError) as error:
            raise EndpointTimeout(f"no complete answer within {seconds:g} s") from error
        except httpx2.HTTPError as error:
            raise EndpointFailed(f"the connection broke: {_short(error) or type(error).__name__}") from error


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def plain_url(text: str) -> SplitResult:
    """Parse the URL of an endpoint. Raises UsageError, which does not repeat what may be a secret."""
    import httpx2

    example = "give a URL such as http://127.0.0.1:8080/v1"
    if "@" in text:
        raise UsageError(
            f"--base-url contains a user or a password, which would be recorded; {example}, and a key in "
            "OPENAI_API_KEY or in a variable named by --api-key-env"
        )
    if "?" in text or "#" in text:
        raise UsageError(f"--base-url has a query or a fragment (? or #); {example}")
    try:
        url, _ = urlsplit(text), httpx2.URL(text)
        is_usable = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    except (httpx2.InvalidURL, ValueError):
        is_usable = False
    if not is_usable:
        raise UsageError(f"--base-url {text!r}: {example}")
    return url


def _read(answer: httpx2.Response, deadline: float) -> bytes:
    """Read the body. The client's own time limit is for one piece; a server that drips would never end."""
    pieces = []
    n_bytes = 0
    for piece in answer.iter_bytes():
        pieces.append(piece)
        n_bytes += len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
        if n_bytes > _MAX_ANSWER_BYTES:
            raise EndpointFailed(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
    return b"".join(pieces)


def _message(data: bytes) -> str:
    """What the endpoint says about its failure, in one short line, in whichever of the usual forms."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        text = data[:1000].decode("utf-8", "replace")
        return "" if text.lstrip().startswith("<") else _short(text)
    if isinstance(found, dict):
        found = found.get("error") or found.get("detail") or found.get("message") or ""
    if isinstance(found, dict):
        found = found.get("message") or ""
    return _short(found if isinstance(found, str) else json.dumps(found))


def _short(text: object) -> str:
    """One line of at most 200 characters."""
    return " ".join(str(text).split())[:200]


def _retry_after(header: str | None) -> float | None:
    """Seconds, from either form of the header (RFC 9110, 10.2.3); None for anything else."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", header):
        return float(header)
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
