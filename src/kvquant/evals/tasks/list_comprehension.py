"""A function of one list comprehension: which values to keep, and what to make of them."""

from __future__ import annotations

import random
from collections.abc import Callable

from kvquant.evals.task import Parameters, Question, Task, text_check
from kvquant.evals.tasks._code import FORM, check_function

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
_NAMES = ("transform", "select", "pick", "process")
_CALLS: tuple[list[list[int]], ...] = (
    [[]],
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]],
    [[-12, -7, -4, 0, 9, 15, 30]],
    [[6, 6, 5, 5, 4, 4]],
)


def _generate(rng: random.Random, _: Parameters) -> Question:
    (keep_text, keep), (make_text, make) = rng.choice(_KEEP), rng.choice(_MAKE)
    limit, amount, name = rng.randint(2, 7), rng.randint(2, 9), rng.choice(_NAMES)
    prompt = (
        f"Write a Python function {name}(values) that takes a list of integers and returns, with one list "
        f"comprehension, each value that is {keep_text.format(limit)}, {make_text.format(amount)}, "
        f"in the same order. {FORM}"
    )
    expected = [[make(value, amount) for value in values if keep(value, limit)] for (values,) in _CALLS]
    return Question(prompt, text_check(lambda answer: check_function(answer, name, _CALLS, expected)))


TASK = Task("list_comprehension", "a Python list comprehension that filters and maps", _generate)
