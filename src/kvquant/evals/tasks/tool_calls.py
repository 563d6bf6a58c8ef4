"""Calls of a tool offered in the request; choosing the right one of two is part of the task."""

from __future__ import annotations

import ast
import json
import operator
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from kvquant.evals.answers import plain, shown
from kvquant.evals.location import facts
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.reply import ToolCall
from kvquant.evals.task import Parameters, Question, Task


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


_SUBJECTS = (
    ("the current weather in {}", "weather"),
    ("today's news from {}", "news"),
    ("this week's concerts in {}", "concerts"),
    ("current hotel prices in {}", "hotel"),
)


def _web_search(rng: random.Random, _: Parameters) -> Question:
    """A question about the present, for which the model has to search the web."""
    subject, word = rng.choice(_SUBJECTS)
    city = rng.choice(facts("countries"))[1]
    prompt = f"Find out about {subject.format(city)}. Use a tool to do so."
    check = tool_check("web_search", "query", lambda query: _check_web_search(query, (word, city)))
    return Question(prompt, check, TOOLS)


def _check_web_search(query: str, words: tuple[str, ...]) -> Graded:
    missing = [word for word in words if plain(word) not in plain(query)]
    return wrong(f"query {shown(query)} without {', '.join(missing)}") if missing else RIGHT


WEB_SEARCH = Task("web_search", "a call of web_search with a fitting query", _web_search)


_OPERATORS: dict[type[ast.AST], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LONGEST = 200


def _calculator(rng: random.Random, _: Parameters) -> Question:
    """Arithmetic that the model has to hand to a calculator."""
    a, b, c = rng.randint(101, 999), rng.randint(11, 99), rng.randint(101, 999)
    sign, value = rng.choice((("plus", a * b + c), ("minus", a * b - c)))
    prompt = f"Use a tool to compute {a} times {b}, {sign} {c}."
    check = tool_check("calculator", "expression", lambda text: _check_calculator(text, value))
    return Question(prompt, check, TOOLS)


def _check_calculator(expression: str, expected: int) -> Graded:
    try:
        tree = ast.parse(expression.replace("×", "*").replace("^", "**")[:_LONGEST].strip(), mode="eval").body
        value = evaluate(tree)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return malformed(f"not arithmetic: {shown(expression)}")
    if isinstance(tree, ast.Constant):
        return wrong(f"the number {shown(expression)} instead of the expression")
    return RIGHT if value == expected else wrong(f"{shown(expression)} is {value}, expected {expected}")


def evaluate(node: ast.expr) -> Fraction:
    """Return the exact value of sums, differences, products and quotients. Raises ValueError for others."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -evaluate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](evaluate(node.left), evaluate(node.right))
    raise ValueError("not arithmetic")


CALCULATOR = Task("calculator", "a call of calculator with the right expression", _calculator)


TASKS = (WEB_SEARCH, CALCULATOR)
