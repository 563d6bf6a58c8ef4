"""One timed request: to llama-server's own completion, whose clock is the server's, or to any chat endpoint,
whose clock is the client's.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvquant.errors import EndpointError
from kvquant.evals.endpoint import Endpoint
from kvquant.evals.tasks.recall import haystack

_DATA = "data:"
_DONE = "[DONE]"
_FEWEST_TOKENS_A_WORD = 1
"""Words that texts for measuring are made of: as many as tokens are wanted, at least."""


@dataclass(frozen=True)
class Answer:
    """What came back. n_prompt: tokens of the prompt. progress: (tokens of the prompt processed, seconds
    since its start) as llama-server reports them. ttft_seconds: from sending to the first token.
    generate_seconds: from the first token to the last. Unknown where the endpoint does not say.
    """

    text: str
    n_prompt: int | None
    n_generated: int | None
    ttft_seconds: float | None
    generate_seconds: float | None
    progress: tuple[tuple[int, float], ...] = ()

    @property
    def decode(self) -> float | None:
        """Tokens per second after the first one."""
        if not self.n_generated or self.n_generated < 2 or not self.generate_seconds:
            return None
        return (self.n_generated - 1) / self.generate_seconds

    def prefill(self, depth: int, n_prompt: int) -> float | None:
        """Tokens per second of the n_prompt tokens after ``depth``, where progress was reported at both
        ends.
        """
        at = {0: 0.0, **dict(self.progress)}
        if depth not in at or depth + n_prompt not in at:
            return None
        seconds = at[depth + n_prompt] - at[depth]
        return n_prompt / seconds if seconds > 0 else None


def complete(
    endpoint: Endpoint,
    prompt: Sequence[int],
    n_gen: int,
    *,
    go_on: bool = True,
    cached: bool = False,
) -> Answer:
    """POST /completion of llama-server with a prompt of tokens, greedy, streamed.

    go_on: make n_gen tokens whatever the model would like to end with. cached: use what the slot still holds.
    Raises EndpointError as `Endpoint.chat` does.
    """
    body = {
        "prompt": list(prompt),
        "n_predict": n_gen,
        "temperature": 0.0,
        "seed": 0,
        "ignore_eos": go_on,
        "cache_prompt": cached,
        "stream": True,
        "return_progress": True,
    }
    begun = time.monotonic()
    progress: dict[int, float] = {}
    pieces: list[str] = []
    first, timings = None, None
    for event in _events(endpoint.post_lines("/completion", body)):
        if "prompt_progress" in event:
            part = event["prompt_progress"]
            progress[int(part["processed"])] = float(part["time_ms"]) / 1000
            continue
        if event.get("tokens") or event.get("content"):
            first = time.monotonic() if first is None else first
            pieces.append(str(event.get("content", "")))
        timings = event.get("timings", timings)
    if not isinstance(timings, Mapping):
        raise EndpointError("llama-server ended an answer without timings")
    n_prompt = int(timings["prompt_n"]) + int(timings["cache_n"])
    if not timings["cache_n"]:
        progress.setdefault(n_prompt, float(timings["prompt_ms"]) / 1000)
    return Answer(
        text="".join(pieces),
        n_prompt=n_prompt,
        n_generated=int(timings["predicted_n"]),
        ttft_seconds=None if first is None else first - begun,
        generate_seconds=float(timings["predicted_ms"]) / 1000,
        progress=tuple(sorted(progress.items())),
    )


def chat(endpoint: Endpoint, model: str, prompt: str, max_tokens: int) -> Answer:
    """POST /chat/completions, greedy, streamed; times are the client's. Raises EndpointError."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun = time.monotonic()
    pieces: list[str] = []
    stamps: list[float] = []
    usage: Mapping[str, Any] = {}
    for event in _events(endpoint.post_lines("/chat/completions", body)):
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            piece = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
            if piece:
                stamps.append(time.monotonic())
                pieces.append(str(delta.get("content") or ""))
    n_generated = _count(usage.get("completion_tokens"))
    return Answer(
        text="".join(pieces),
        n_prompt=_count(usage.get("prompt_tokens")),
        n_generated=n_generated,
        ttft_seconds=stamps[0] - begun if stamps else None,
        generate_seconds=stamps[-1] - stamps[0] if len(stamps) > 1 else None,
    )


def filler(n_tokens: int, seed: int = 0) -> str:
    """Return a text of at least ``n_tokens`` tokens in any vocabulary: each word is one at least."""
    return haystack(random.Random(seed), n_tokens * _FEWEST_TOKENS_A_WORD, {})


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events. Raises EndpointError for what is none, or an
    error.
    """
    for line in lines:
        if not line.startswith(_DATA):
            continue
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise EndpointError("the endpoint sent an event that is not JSON") from error
        if not isinstance(event, dict):
            raise EndpointError("the endpoint sent an event that is not a JSON object")
        if "error" in event:
            what = event["error"]
            message = what.get("message") if isinstance(what, dict) else what
            raise EndpointError(f"the endpoint: {' '.join(str(message).split())[:200]}")
        yield event


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
