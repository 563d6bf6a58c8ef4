"""Two things cost a sum together and differ by a given price: the answer that comes to mind is wrong."""

from __future__ import annotations

import random

from kvquant.evals.answers import ANSWER_LINE, check_number
from kvquant.evals.task import Parameters, Question, Task, text_check

_PAIRS = (
    ("bat", "ball"),
    ("coat", "hat"),
    ("lamp", "bulb"),
    ("kettle", "mug"),
    ("desk", "tray"),
    ("drum", "stick"),
    ("tent", "rope"),
    ("frame", "photo"),
)


def _generate(rng: random.Random, _: Parameters) -> Question:
    dear, cheap = rng.choice(_PAIRS)
    price = rng.randrange(5, 100, 5)
    difference = rng.randrange(100, 2000, 25)
    prompt = (
        f"A {dear} and a {cheap} cost {_dollars(2 * price + difference)} together. The {dear} costs "
        f"{_dollars(difference)} more than the {cheap}. How many cents does the {cheap} cost? {ANSWER_LINE}"
    )
    return Question(prompt, text_check(lambda answer: check_number(answer, price)))


def _dollars(cents: int) -> str:
    return f"${cents // 100}.{cents % 100:02}"


TASK = Task("bat_and_ball", "prices from a sum and a difference", _generate)
