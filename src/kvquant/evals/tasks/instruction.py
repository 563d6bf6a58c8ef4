"""Answers in a form that is asked for: CSV, JSON, a number of sentences, and nothing around them."""

from __future__ import annotations

import csv
import json
import random
import re
from typing import Any

from kvquant.evals.answers import shown
from kvquant.evals.location import words
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task, text_check


def draw(rng: random.Random, n: int) -> list[tuple[str, int, str]]:
    """Return ``n`` records (name, age, city), the names different."""
    return [
        (name, rng.randint(18, 80), rng.choice(words("cities")))
        for name in rng.sample(words("first_names"), n)
    ]


def said(records: list[tuple[str, int, str]]) -> str:
    """Return the records as a sentence each."""
    return " ".join(f"{name} is {age} years old and lives in {city}." for name, age, city in records)


def _csv_rows(rng: random.Random, _: Parameters) -> Question:
    """Facts in prose, to be written as CSV and nothing else."""
    records = draw(rng, rng.randint(2, 4))
    expected = [["name", "age", "city"], *([name, str(age), city] for name, age, city in records)]
    prompt = (
        f"{said(records)} Write this as CSV with the header name,age,city and one row per person in the "
        "order given. Reply with the CSV only: no explanation, no code fence, no blanks after commas."
    )
    return Question(prompt, text_check(lambda answer: _check_csv_rows(answer, expected)))


def _check_csv_rows(answer: str, expected: list[list[str]]) -> Graded:
    try:
        rows = [row for row in csv.reader(answer.strip().splitlines()) if row]
    except csv.Error:
        rows = [[]]
    if any(len(row) != len(expected[0]) for row in rows):
        return malformed(f"not CSV of {len(expected[0])} columns: {shown(answer)}")
    return RIGHT if rows == expected else wrong(f"other rows than those asked for: {shown(answer)}")


CSV_ROWS = Task("csv_rows", "facts written as CSV only", _csv_rows)


def _raw_json(rng: random.Random, _: Parameters) -> Question:
    """Facts in prose, to be written as JSON and nothing else: a code fence around it is malformed."""
    ((name, age, city),) = records = draw(rng, 1)
    prompt = (
        f"{said(records)} Reply with one JSON object with the keys name (a string), age (a number) and city "
        "(a string), and nothing else: no explanation, no code fence."
    )
    expected = {"name": name, "age": age, "city": city}
    return Question(prompt, text_check(lambda answer: _check_raw_json(answer, expected)))


def _check_raw_json(answer: str, expected: dict[str, Any]) -> Graded:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return malformed(f"not JSON: {shown(answer)}")
    if not isinstance(found, dict):
        return malformed(f"not a JSON object: {shown(answer)}")
    return RIGHT if found == expected else wrong(f"{shown(answer)}, expected {json.dumps(expected)}")


RAW_JSON = Task("raw_json", "facts written as a JSON object only", _raw_json)


_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|$)")


def _sentence_count(rng: random.Random, _: Parameters) -> Question:
    """A given number of sentences about something, neither more nor fewer."""
    n, topic = rng.randint(2, 7), rng.choice(words("topics"))
    prompt = f"Write exactly {n} sentences about {topic}. Use no lists, no headings and no abbreviations."
    return Question(prompt, text_check(lambda answer: _check_sentence_count(answer, n)))


def _check_sentence_count(answer: str, n: int) -> Graded:
    found = len(_END.findall(answer))
    if not found:
        return malformed("no sentence ends in it")
    return RIGHT if found == n else wrong(f"{found} sentences, expected {n}")


SENTENCE_COUNT = Task("sentence_count", "exactly as many sentences as asked for", _sentence_count)


TASKS = (CSV_ROWS, RAW_JSON, SENTENCE_COUNT)
