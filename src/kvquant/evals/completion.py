"""The JSON of a chat completion, read without trusting it."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from kvquant.errors import EndpointError
from kvquant.evals.answers import shown
from kvquant.evals.reply import Reply, ToolCall


def parse_json(data: bytes) -> Any:
    """Return what ``data`` holds as JSON; NaN and infinities are none. Raises EndpointError."""
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise EndpointError(f"not JSON: {shown(data[:100].decode('utf-8', 'replace'))}") from error


def parse_completion(document: Any) -> Reply:
    """Return the first choice of a chat completion. Raises EndpointError when ``document`` is none."""
    try:
        choice = document["choices"][0]
        message = choice["message"]
        text = message.get("content")
        if not isinstance(text, str | None):
            raise TypeError("content")
        calls = tuple(_tool_call(call["function"]) for call in message.get("tool_calls") or ())
        reason, usage = choice.get("finish_reason"), document.get("usage") or {}
        n_prompt, n_completion = (_count(usage, f"{what}_tokens") for what in ("prompt", "completion"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError(f"not a chat completion: {shown(json.dumps(document))}") from error
    return Reply(text or "", calls, None if reason is None else str(reason), n_prompt, n_completion)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _tool_call(function: Any) -> ToolCall:
    """A call; some endpoints send the arguments as an object instead of its text."""
    arguments = function["arguments"]
    return ToolCall(str(function["name"]), arguments if isinstance(arguments, str) else json.dumps(arguments))


def _count(usage: Any, key: str) -> int | None:
    """A count the endpoint reports, if it does."""
    found = usage.get(key) if isinstance(usage, dict) else None
    return found if isinstance(found, int) else None
