"""Small records that the formatting tasks ask a model to write down."""

from __future__ import annotations

import random

from kvquant.evals.location import words


def draw(rng: random.Random, n: int) -> list[tuple[str, int, str]]:
    """Return ``n`` records (name, age, city), the names different."""
    return [
        (name, rng.randint(18, 80), rng.choice(words("cities")))
        for name in rng.sample(words("first_names"), n)
    ]


def said(records: list[tuple[str, int, str]]) -> str:
    """Return the records as a sentence each."""
    return " ".join(f"{name} is {age} years old and lives in {city}." for name, age, city in records)
