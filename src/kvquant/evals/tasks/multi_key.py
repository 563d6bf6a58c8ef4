"""Many facts of one form spread over a long text, of which one is asked for: the others distract."""

from __future__ import annotations

import random

from kvquant.evals.task import Parameters, Question, Task, text_check
from kvquant.evals.tasks._haystack import ask, check_code, haystack, keys, sentence, value


def _generate(rng: random.Random, parameters: Parameters) -> Question:
    n_keys, n_words = int(parameters["n_keys"]), int(parameters["n_words"])
    names = keys(rng, n_keys)
    codes = {name: value(rng) for name in names}
    depths = {name: index / max(1, n_keys - 1) for index, name in enumerate(names)}
    text = haystack(rng, n_words, {sentence(name, codes[name]): depths[name] for name in names})
    asked = rng.choice(names)
    check = text_check(lambda answer: check_code(answer, codes[asked]))
    labels = {"depth": depths[asked], "n_words": n_words, "n_keys": n_keys}
    return Question(ask(text, asked), check, labels=labels)


TASK = Task("multi_key", "one of many like facts in a long text", _generate, {"n_words": 500, "n_keys": 8})
