"""A given number of sentences about something, neither more nor fewer."""

from __future__ import annotations

import random
import re

from kvquant.evals.location import words
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task, text_check

_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|$)")


def _generate(rng: random.Random, _: Parameters) -> Question:
    n, topic = rng.randint(2, 7), rng.choice(words("topics"))
    prompt = f"Write exactly {n} sentences about {topic}. Use no lists, no headings and no abbreviations."
    return Question(prompt, text_check(lambda answer: _check(answer, n)))


def _check(answer: str, n: int) -> Graded:
    found = len(_END.findall(answer))
    if not found:
        return malformed("no sentence ends in it")
    return RIGHT if found == n else wrong(f"{found} sentences, expected {n}")


TASK = Task("sentence_count", "exactly as many sentences as asked for", _generate)
