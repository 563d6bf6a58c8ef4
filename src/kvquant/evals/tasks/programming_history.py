"""Who designed a programming language, and which of two came first (eval/facts/languages.toml)."""

from __future__ import annotations

import random

from kvquant.evals.answers import check_choice, names_in, shown
from kvquant.evals.location import facts
from kvquant.evals.outcome import RIGHT, Graded, wrong
from kvquant.evals.task import Parameters, Question, Task, text_check

_YEARS_APART = 5


def _generate(rng: random.Random, _: Parameters) -> Question:
    languages = facts("languages")
    if rng.random() < 0.25:
        language, designer, _year = rng.choice(languages)
        prompt = f"Who designed the programming language {language}? Answer with the person's name only."
        return Question(prompt, text_check(lambda answer: _check_surname(answer, designer)))
    while True:
        first, second = rng.sample(languages, 2)
        if abs(first[2] - second[2]) >= _YEARS_APART:
            break
    earlier, later = sorted((first, second), key=lambda row: int(row[2]))
    prompt = (
        f"Which programming language appeared first, {first[0]} or {second[0]}? "
        "Answer with the name of that language only."
    )
    return Question(prompt, text_check(lambda answer: check_choice(answer, earlier[0], (later[0],))))


def _check_surname(answer: str, designer: str) -> Graded:
    surname = designer.split()[-1]
    return RIGHT if names_in(answer, (surname,)) else wrong(f"{shown(answer)}, expected {designer}")


TASK = Task("programming_history", "designers and order of programming languages", _generate)
