"""What the two code tasks share: take the code out of an answer, run it, compare what it returns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kvquant.evals.answers import shown
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.sandbox import Failure, call_function

_FENCE = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)

FORM = "Reply with the Python code only."


def code_in(answer: str, function: str) -> str:
    """Return the last fenced block that defines ``function``, else the whole answer."""
    blocks = [block for block in _FENCE.findall(answer) if f"def {function}" in block]
    return blocks[-1] if blocks else answer


def check_function(
    answer: str, function: str, calls: Sequence[Sequence[Any]], expected: Sequence[Any]
) -> Graded:
    """Grade an answer by running the function it defines; results are compared as JSON values, with types."""
    called = call_function(code_in(answer, function), function, calls)
    if called.values is None:
        grade = malformed if called.failure is Failure.CODE else wrong
        return grade(called.detail)
    for arguments, found, right in zip(calls, called.values, expected, strict=True):
        if type(found) is not type(right) or found != right:
            given = ", ".join(shown(str(argument)) for argument in arguments)
            return wrong(f"{function}({given}) returned {shown(str(found))}, expected {right!r}")
    return RIGHT
