"""Python functions to be written, graded by running them (kvquant.evals.sandbox)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from kvquant.evals.answers import shown
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.sandbox import Failure, call_function
from kvquant.evals.task import Parameters, Question, Task, text_check

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


_KEEP: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    ("greater than {}", lambda value, n: value > n),
    ("smaller than {}", lambda value, n: value < n),
    ("divisible by {}", lambda value, n: value % n == 0),
    ("not divisible by {}", lambda value, n: value % n != 0),
)
_MAKE: tuple[tuple[str, Callable[[int, int], int]], ...] = (
    ("plus {}", lambda value, n: value + n),
    ("times {}", lambda value, n: value * n),
    ("squared, minus {}", lambda value, n: value * value - n),
)
_FUNCTIONS = ("transform", "select", "pick", "process")
_CALLS: tuple[list[list[int]], ...] = (
    [[]],
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]],
    [[-12, -7, -4, 0, 9, 15, 30]],
    [[6, 6, 5, 5, 4, 4]],
)


def _list_comprehension(rng: random.Random, _: Parameters) -> Question:
    """A function of one list comprehension: which values to keep, and what to make of them."""
    (keep_text, keep), (make_text, make) = rng.choice(_KEEP), rng.choice(_MAKE)
    limit, amount, name = rng.randint(2, 7), rng.randint(2, 9), rng.choice(_FUNCTIONS)
    prompt = (
        f"Write a Python function {name}(values) that takes a list of integers and returns, with one list "
        f"comprehension, each value that is {keep_text.format(limit)}, {make_text.format(amount)}, "
        f"in the same order. {FORM}"
    )
    expected = [[make(value, amount) for value in values if keep(value, limit)] for (values,) in _CALLS]
    return Question(prompt, text_check(lambda answer: check_function(answer, name, _CALLS, expected)))


LIST_COMPREHENSION = Task(
    "list_comprehension", "a Python list comprehension that filters and maps", _list_comprehension
)


_PALINDROME_FUNCTIONS = tuple(
    f"{verb}_{noun}"
    for verb in ("is", "check", "test", "find", "detect")
    for noun in ("palindrome", "mirror", "mirrored", "symmetric", "reversible", "palindromic")
)
_TEXTS = (
    "",
    "a",
    "Level",
    "level",
    "never odd or even",
    "Was it a car, or a cat I saw?",
    "ab",
    "1001",
    "10 01 ",
)


def _palindrome(rng: random.Random, _: Parameters) -> Question:
    """A function about palindromes, under varying rules for case and punctuation."""
    name = rng.choice(_PALINDROME_FUNCTIONS)
    folds_case, letters_only, counts = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.5
    rules = [
        "Upper and lower case count as the same." if folds_case else "Upper and lower case are different.",
        "Skip everything but letters and digits."
        if letters_only
        else "Every character counts, blanks and punctuation too.",
    ]
    if counts:
        what = f"{name}(texts) that returns how many strings in the list texts are palindromes"
        calls: list[list[Any]] = [[list(_TEXTS)], [[]], [list(_TEXTS[:3])]]
        expected: list[Any] = [
            sum(_is_palindrome(text, folds_case, letters_only) for text in texts) for (texts,) in calls
        ]
    else:
        what = f"{name}(text) that returns True if the string text is a palindrome, else False"
        calls = [[text] for text in _TEXTS]
        expected = [_is_palindrome(text, folds_case, letters_only) for text in _TEXTS]
    prompt = f"Write a Python function {what}. {' '.join(rules)} The empty string is a palindrome. {FORM}"
    return Question(prompt, text_check(lambda answer: check_function(answer, name, calls, expected)))


def _is_palindrome(text: str, folds_case: bool, letters_only: bool) -> bool:
    folded = text.lower() if folds_case else text
    kept = [letter for letter in folded if letter.isalnum() or not letters_only]
    return kept == kept[::-1]


PALINDROME = Task("palindrome", "a Python function that recognises palindromes", _palindrome)


TASKS = (LIST_COMPREHENSION, PALINDROME)
