"""Facts in prose, to be written as JSON and nothing else: a code fence around it is malformed."""

from __future__ import annotations

import json
import random
from typing import Any

from kvquant.evals.answers import shown
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task, text_check
from kvquant.evals.tasks._people import draw, said


def _generate(rng: random.Random, _: Parameters) -> Question:
    ((name, age, city),) = records = draw(rng, 1)
    prompt = (
        f"{said(records)} Reply with one JSON object with the keys name (a string), age (a number) and city "
        "(a string), and nothing else: no explanation, no code fence."
    )
    expected = {"name": name, "age": age, "city": city}
    return Question(prompt, text_check(lambda answer: _check(answer, expected)))


def _check(answer: str, expected: dict[str, Any]) -> Graded:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return malformed(f"not JSON: {shown(answer)}")
    if not isinstance(found, dict):
        return malformed(f"not a JSON object: {shown(answer)}")
    return RIGHT if found == expected else wrong(f"{shown(answer)}, expected {json.dumps(expected)}")


TASK = Task("raw_json", "facts written as a JSON object only", _generate)
