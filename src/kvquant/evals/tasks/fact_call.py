"""A look-up of a made-up key, written as a JSON object with the tool's name and arguments."""

from __future__ import annotations

import json
import random

from kvquant.evals.answers import shown
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task
from kvquant.evals.tasks._facts_chat import DEFAULTS, draw


def _generate(rng: random.Random, parameters: Parameters) -> Question:
    return draw(rng, parameters, "tool", _check)


def _check(answer: str, right: str) -> Graded:
    try:
        call = json.loads(answer)
        found = (str(call["name"]), str(call["arguments"]["key"]).strip())
    except (ValueError, KeyError, TypeError, RecursionError):
        return malformed(f"not a call: {shown(answer)}")
    expected = json.loads(right)
    is_right = found == (expected["name"], expected["arguments"]["key"])
    return RIGHT if is_right else wrong(f"{shown(answer)}, expected {right}")


TASK = Task("fact_call", "a tool call that names a made-up key", _generate, DEFAULTS)
