"""What the two tool tasks share: the tools on offer, and reading a call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from kvquant.evals.answers import shown
from kvquant.evals.outcome import Graded, malformed, wrong
from kvquant.evals.reply import ToolCall


def _tool(name: str, about: str, argument: str, about_argument: str) -> dict[str, Any]:
    """A function tool with one string argument, as the chat completions API takes it."""
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string", "description": about_argument}},
        "required": [argument],
    }
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


# Both are offered in both tests: choosing the right one is part of the task.
TOOLS: tuple[Mapping[str, Any], ...] = (
    _tool("web_search", "Search the web for current information.", "query", "What to search for."),
    _tool("calculator", "Evaluate an arithmetic expression.", "expression", "An expression such as 2 * 3."),
)


def tool_check(
    name: str, argument: str, check: Callable[[str], Graded]
) -> Callable[[str, tuple[ToolCall, ...]], Graded]:
    """Return the check of a question that one call of ``name`` answers; ``check`` grades its argument."""

    def checked(answer: str, tool_calls: tuple[ToolCall, ...]) -> Graded:
        if not tool_calls:
            return wrong(f"no tool call but {shown(answer)}") if answer else malformed("an empty answer")
        if len(tool_calls) > 1 or tool_calls[0].name != name:
            called = ", ".join(call.name for call in tool_calls)
            return wrong(f"called {shown(called)}, expected one call of {name}")
        try:
            arguments = json.loads(tool_calls[0].arguments)
        except (ValueError, RecursionError):
            return malformed(f"arguments that are not JSON: {shown(tool_calls[0].arguments)}")
        if not isinstance(arguments, dict) or not isinstance(arguments.get(argument), str):
            return malformed(f"arguments without a string {argument!r}: {shown(tool_calls[0].arguments)}")
        if set(arguments) != {argument}:
            return malformed(f"arguments that {name} does not take: {shown(tool_calls[0].arguments)}")
        return check(arguments[argument])

    return checked
