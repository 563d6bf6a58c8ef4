"""Several of many made-up facts, asked for by their keys; each must be there and no other."""

from __future__ import annotations

import random

from kvquant.evals.answers import shown
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task
from kvquant.evals.tasks._facts_chat import DEFAULTS, draw, pairs_in


def _generate(rng: random.Random, parameters: Parameters) -> Question:
    return draw(rng, parameters, "list", _check)


def _check(answer: str, right: str) -> Graded:
    found, expected = pairs_in(answer), pairs_in(right)
    if not found:
        return malformed(f"no key=value in {shown(answer)}")
    is_right = sorted(found) == sorted(expected)
    return RIGHT if is_right else wrong(f"{shown(answer)}, expected {shown(right)}")


TASK = Task("fact_list", "several of many made-up facts", _generate, DEFAULTS)
