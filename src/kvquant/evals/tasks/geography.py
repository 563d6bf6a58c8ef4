"""Capitals and continents of countries (eval/facts/countries.toml)."""

from __future__ import annotations

import random

from kvquant.evals.answers import check_choice, check_name
from kvquant.evals.location import facts
from kvquant.evals.task import Parameters, Question, Task, text_check


def _generate(rng: random.Random, _: Parameters) -> Question:
    countries = facts("countries")
    country, capital, continent = rng.choice(countries)
    kind = rng.choice(("capital", "country", "continent"))
    if kind == "capital":
        prompt = f"What is the capital of {country}? Answer with the name of the city only."
        return Question(prompt, text_check(lambda answer: check_name(answer, capital)))
    if kind == "country":
        prompt = f"Which country has {capital} as its capital? Answer with the name of the country only."
        return Question(prompt, text_check(lambda answer: check_name(answer, country)))
    continents = sorted({row[2] for row in countries})
    prompt = f"On which continent is {country}: {', '.join(continents)}? Answer with the name only."
    return Question(prompt, text_check(lambda answer: check_choice(answer, continent, continents)))


TASK = Task("geography", "capitals and continents", _generate)
