"""One fact somewhere in a long text."""

from __future__ import annotations

import random

from kvquant.evals.task import Parameters, Question, Task, text_check
from kvquant.evals.tasks._haystack import ask, check_code, haystack, keys, sentence, value


def _generate(rng: random.Random, parameters: Parameters) -> Question:
    depth, n_words = float(rng.choice(parameters["depths"])), int(parameters["n_words"])
    (key,), code = keys(rng, 1), value(rng)
    text = haystack(rng, n_words, {sentence(key, code): depth})
    check = text_check(lambda answer: check_code(answer, code))
    return Question(ask(text, key), check, labels={"depth": depth, "n_words": n_words})


TASK = Task(
    "needle", "one fact in a long text", _generate, {"n_words": 500, "depths": [0.0, 0.25, 0.5, 0.75, 1.0]}
)
