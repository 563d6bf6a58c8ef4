"""Machines that make things at a rate: scale the number of machines and of things apart."""

from __future__ import annotations

import random

from kvquant.evals.answers import ANSWER_LINE, check_number
from kvquant.evals.task import Parameters, Question, Task, text_check

_WORKERS = (("machines", "widgets"), ("ovens", "loaves"), ("printers", "posters"), ("looms", "scarves"))


def _generate(rng: random.Random, _: Parameters) -> Question:
    workers, things = rng.choice(_WORKERS)
    n, each, minutes = rng.randint(3, 12), rng.randint(1, 3), rng.randint(3, 20)
    m, rounds = rng.randint(20, 120), rng.randint(1, 4)
    prompt = (
        f"{n} {workers} take {minutes} minutes to make {n * each} {things}. At the same rate, how many "
        f"minutes do {m} {workers} take to make {m * each * rounds} {things}? {ANSWER_LINE}"
    )
    return Question(prompt, text_check(lambda answer: check_number(answer, minutes * rounds)))


TASK = Task("rate_scaling", "the time many machines take for many things", _generate)
