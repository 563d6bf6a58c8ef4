"""What an endpoint said, and the part of it that is the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. arguments: as the endpoint sent them, by the API a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """One chat completion. Token counts are None when the endpoint does not report them."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    n_prompt_tokens: int | None = None
    n_completion_tokens: int | None = None


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
