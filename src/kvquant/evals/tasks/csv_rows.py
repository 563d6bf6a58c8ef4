"""Facts in prose, to be written as CSV and nothing else."""

from __future__ import annotations

import csv
import random

from kvquant.evals.answers import shown
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task, text_check
from kvquant.evals.tasks._people import draw, said


def _generate(rng: random.Random, _: Parameters) -> Question:
    records = draw(rng, rng.randint(2, 4))
    expected = [["name", "age", "city"], *([name, str(age), city] for name, age, city in records)]
    prompt = (
        f"{said(records)} Write this as CSV with the header name,age,city and one row per person in the "
        "order given. Reply with the CSV only: no explanation, no code fence, no blanks after commas."
    )
    return Question(prompt, text_check(lambda answer: _check(answer, expected)))


def _check(answer: str, expected: list[list[str]]) -> Graded:
    try:
        rows = [row for row in csv.reader(answer.strip().splitlines()) if row]
    except csv.Error:
        rows = [[]]
    if any(len(row) != len(expected[0]) for row in rows):
        return malformed(f"not CSV of {len(expected[0])} columns: {shown(answer)}")
    return RIGHT if rows == expected else wrong(f"other rows than those asked for: {shown(answer)}")


TASK = Task("csv_rows", "facts written as CSV only", _generate)
