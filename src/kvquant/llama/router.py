"""llama-server in router mode: which models it offers, load one, unload one (tools/server/README.md at the
pin).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvquant.errors import LlamaError

POLL_SECONDS = 0.25
_REQUEST_SECONDS = 60.0


@dataclass(frozen=True)
class RoutedModel:
    """A model of a router. state: unloaded, loading, loaded, sleeping or downloading. failed: its last start
    ended so. args: of its server, empty where none was started.
    """

    name: str
    state: str
    failed: bool
    args: tuple[str, ...]


class Router:
    """A router. base_url: without /v1. key: for the Authorization header, never shown."""

    def __init__(self, base_url: str, key: str | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._key = key

    def models(self) -> tuple[RoutedModel, ...]:
        """Return what it offers. Raises LlamaError, also for a server that is no router."""
        answer = self._ask("GET", "/models", None)
        try:
            return tuple(_model(entry) for entry in answer["data"])
        except (KeyError, TypeError) as error:
            raise LlamaError(
                f"{self.base_url} is not a router: its models have no status; start llama-server "
                "without --model"
            ) from error

    def load(
        self, name: str, timeout_seconds: float = 600.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Load a model and wait until it answers. Raises LlamaError when it fails or takes too long."""
        if self._find(name).state == "loaded":
            return
        self._ask("POST", "/models/load", {"model": name})
        self._wait(name, "loaded", timeout_seconds, sleep)

    def unload(
        self, name: str, timeout_seconds: float = 60.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Unload a model and wait until its memory is free again. Raises LlamaError."""
        if self._find(name).state == "unloaded":
            return
        self._ask("POST", "/models/unload", {"model": name})
        self._wait(name, "unloaded", timeout_seconds, sleep)

    def _wait(self, name: str, state: str, timeout_seconds: float, sleep: Callable[[float], None]) -> None:
        deadline = time.monotonic() + timeout_seconds
        while (model := self._find(name)).state != state:
            if state == "loaded" and model.failed and model.state == "unloaded":
                raise LlamaError(f"the router could not load {name}; its log says why")
            if time.monotonic() > deadline:
                raise LlamaError(
                    f"the router has {name} {model.state} after {timeout_seconds:g} s, not {state}"
                )
            sleep(POLL_SECONDS)

    def _find(self, name: str) -> RoutedModel:
        models = self.models()
        found = next((model for model in models if model.name == name), None)
        if found is None:
            known = ", ".join(model.name for model in models) or "none"
            raise LlamaError(f"the router has no model {name!r}; it has: {known}")
        return found

    def _ask(self, method: str, path: str, body: object) -> Any:
        import httpx2  # only here: most commands talk to nobody

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            with httpx2.Client(headers=headers, trust_env=False, timeout=_REQUEST_SECONDS) as client:
                answer = client.request(method, self.base_url + path, json=body)
                document = answer.json()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise LlamaError(
                f"{self.base_url} cannot be reached: {' '.join(str(error).split())[:200]}"
            ) from error
        except ValueError as error:
            raise LlamaError(f"{self.base_url}{path} answers with something that is not JSON") from error
        if answer.status_code != 200:
            what = document.get("error") if isinstance(document, dict) else None
            message = what.get("message") if isinstance(what, dict) else None
            raise LlamaError(
                f"{self.base_url}{path}: HTTP status {answer.status_code}: {message or document}"
            )
        return document


def _model(entry: Any) -> RoutedModel:
    status = entry["status"]
    return RoutedModel(
        name=str(entry["id"]),
        state=str(status["value"]),
        failed=bool(status.get("failed", False)),
        args=tuple(map(str, status.get("args") or ())),
    )
