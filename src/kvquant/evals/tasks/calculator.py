"""Arithmetic that the model has to hand to a calculator."""

from __future__ import annotations

import ast
import operator
import random
from collections.abc import Callable
from fractions import Fraction

from kvquant.evals.answers import shown
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task
from kvquant.evals.tasks._tools import TOOLS, tool_check

_OPERATORS: dict[type[ast.AST], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LONGEST = 200


def _generate(rng: random.Random, _: Parameters) -> Question:
    a, b, c = rng.randint(101, 999), rng.randint(11, 99), rng.randint(101, 999)
    sign, value = rng.choice((("plus", a * b + c), ("minus", a * b - c)))
    prompt = f"Use a tool to compute {a} times {b}, {sign} {c}."
    check = tool_check("calculator", "expression", lambda text: _check(text, value))
    return Question(prompt, check, TOOLS)


def _check(expression: str, expected: int) -> Graded:
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


TASK = Task("calculator", "a call of calculator with the right expression", _generate)
