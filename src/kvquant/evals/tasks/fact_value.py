"""One of many made-up facts, asked for by its key; the number counts, in whatever words it comes."""

from __future__ import annotations

import random

from kvquant.evals.answers import check_number
from kvquant.evals.outcome import Graded
from kvquant.evals.task import Parameters, Question, Task
from kvquant.evals.tasks._facts_chat import DEFAULTS, draw, pairs_in


def _generate(rng: random.Random, parameters: Parameters) -> Question:
    return draw(rng, parameters, "pair", _check)


def _check(answer: str, right: str) -> Graded:
    ((_, value),) = pairs_in(right)
    return check_number(answer, int(value))


TASK = Task("fact_value", "one of many made-up facts", _generate, DEFAULTS)
