"""Speed, time and distance: two are given."""

from __future__ import annotations

import random

from kvquant.evals.answers import ANSWER_LINE, check_number
from kvquant.evals.task import Parameters, Question, Task, text_check

_THINGS = ("train", "car", "cyclist", "ship", "truck", "bus")


def _generate(rng: random.Random, _: Parameters) -> Question:
    thing, speed, hours = rng.choice(_THINGS), rng.randrange(15, 150, 5), rng.randint(2, 9)
    distance = speed * hours
    ask, expected = rng.choice(
        (
            (f"covers {distance} km in {hours} hours. What is its average speed in km/h?", speed),
            (f"moves at {speed} km/h for {hours} hours. How many kilometres does it cover?", distance),
            (f"moves at {speed} km/h. How many hours does it take for {distance} km?", hours),
        )
    )
    prompt = f"A {thing} {ask} {ANSWER_LINE}"
    return Question(prompt, text_check(lambda answer: check_number(answer, expected)))


TASK = Task("speed_distance", "one of speed, time and distance from the others", _generate)
