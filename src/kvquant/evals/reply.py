"""What an endpoint said: the JSON of a chat completion, read without trusting it, and the answer in it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from kvquant.errors import EndpointError
from kvquant.evals.answers import shown

UNPARSED = "unparsed"
"""The finish reason of an answer that the endpoint's own parser could not read; its text is the message."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. arguments: as the endpoint sent them, by the API a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """One chat completion. Token counts are None when the endpoint does not report them.

    reasoning: what the endpoint sent apart from the text, such as llama-server's ``reasoning_content``.
    """

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    n_prompt_tokens: int | None = None
    n_completion_tokens: int | None = None
    reasoning: str = ""


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
        text, thought = _texts(message.get("content"))
        calls = tuple(_tool_call(call["function"]) for call in message.get("tool_calls") or ())
        reason, usage = choice.get("finish_reason"), document.get("usage") or {}
        n_prompt, n_completion = (_count(usage, f"{what}_tokens") for what in ("prompt", "completion"))
        # llama-server, DeepSeek and SGLang use the first name, vLLM, Ollama and OpenRouter the second.
        apart = (message.get(key) for key in ("reasoning_content", "reasoning"))
        reasoning = next((found for found in apart if isinstance(found, str) and found), thought)
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError(f"not a chat completion: {shown(json.dumps(document))}") from error
    if not text and isinstance(refusal, str):
        text = refusal
    finish = None if reason is None else str(reason)
    return Reply(text, calls, finish, n_prompt, n_completion, reasoning)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _texts(content: Any) -> tuple[str, str]:
    """The text and the reasoning of a message's content: a text, nothing, or a list of parts."""
    if isinstance(content, str | None):
        return content or "", ""
    if not isinstance(content, list):
        raise TypeError("content")
    texts: dict[bool, list[str]] = {True: [], False: []}
    for part in content:
        kind = "text" if isinstance(part, str) else str(part["type"])
        is_thought = kind in {"reasoning", "thinking"}
        text = part if isinstance(part, str) else part.get("text") or (part.get(kind) if is_thought else "")
        texts[is_thought].append(text if isinstance(text, str) else "")
    return "".join(texts[False]), "".join(texts[True])


def _tool_call(function: Any) -> ToolCall:
    """A call; some endpoints send the arguments as an object instead of its text."""
    arguments = function["arguments"]
    return ToolCall(str(function["name"]), arguments if isinstance(arguments, str) else json.dumps(arguments))


def _count(usage: Any, key: str) -> int | None:
    """A count the endpoint reports, if it does."""
    found = usage.get(key) if isinstance(usage, dict) else None
    return found if isinstance(found, int) else None


# (opening, closing) of reasoning in the text: DeepSeek and Qwen; Gemma; the harmony format, whose reasoning
# ends where the next message starts.
_REASONING = (
    (r"<think(?:ing)?>", r"</think(?:ing)?>"),
    (r"<\|channel>\s*thought", r"<channel\|>"),
    (r"<\|channel\|>\s*(?:analysis|commentary)", r"<\|(?:end|start)\|>"),
)
# Markers that stand around the answer itself.
_AROUND = re.compile(
    r"(?:<\|start\|>\s*assistant)?\s*<\|channel\|>\s*final(?:\s*<\|message\|>)?|<\|(?:end|return|message)\|>"
)


def strip_reasoning(text: str) -> str | None:
    """Return ``text`` without its reasoning; None when the reasoning never ends.

    A closing marker without an opening one ends reasoning that the prompt's template opened.
    """
    for opening, closing in _REASONING:
        text = re.sub(f"{opening}.*?{closing}", "", text, flags=re.DOTALL)
        if re.search(opening, text):
            return None
    *_, text = re.split(r"</think(?:ing)?>|<channel\|>", text)
    return _AROUND.sub("", text).strip()


_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:can(?:'t|not| not)|won't|will not)\b|"
    r"as an ai\b|i do(?:n't| not) have (?:access|the ability))",
    re.IGNORECASE,
)
_REFUSAL_STARTS_WITHIN = 80


def is_refusal(answer: str) -> bool:
    """Whether an answer declines near its start. Meant for answers that were found not to be right."""
    return _REFUSAL.search(answer.replace("’", "'")[:_REFUSAL_STARTS_WITHIN]) is not None
