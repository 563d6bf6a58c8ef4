"""What a model has read: countries, programming languages, elements (from eval/facts)."""

from __future__ import annotations

import random
import re

from kvquant.evals.answers import check_choice, check_name, check_number, names_in, shown
from kvquant.evals.location import facts
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task, text_check


def _geography(rng: random.Random, _: Parameters) -> Question:
    """Capitals and continents of countries (eval/facts/countries.toml)."""
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


GEOGRAPHY = Task("geography", "capitals and continents", _geography)


_YEARS_APART = 5


def _programming_history(rng: random.Random, _: Parameters) -> Question:
    """Who designed a programming language, and which of two came first (eval/facts/languages.toml)."""
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


PROGRAMMING_HISTORY = Task(
    "programming_history", "designers and order of programming languages", _programming_history
)


def _chemistry(rng: random.Random, _: Parameters) -> Question:
    """Names, symbols and atomic numbers of the elements (eval/facts/elements.toml)."""
    number, symbol, name = rng.choice(facts("elements"))
    kind = rng.choice(("symbol", "name", "number", "from number"))
    if kind == "symbol":
        prompt = f"What is the chemical symbol of {name}? Answer with the symbol only."
        return Question(prompt, text_check(lambda answer: _check_symbol(answer, symbol)))
    if kind == "name":
        prompt = f"Which chemical element has the symbol {symbol}? Answer with its name only."
        return Question(prompt, text_check(lambda answer: check_name(answer, name)))
    if kind == "number":
        prompt = f"What is the atomic number of {name}? Answer with the number only."
        return Question(prompt, text_check(lambda answer: check_number(answer, number)))
    prompt = f"Which chemical element has the atomic number {number}? Answer with its name only."
    return Question(prompt, text_check(lambda answer: check_name(answer, name)))


def _check_symbol(answer: str, symbol: str) -> Graded:
    """Symbols are told apart by case, so the answer is the last word as it stands: Co is not CO."""
    words = re.findall("[A-Za-z]+", answer)
    if not words:
        return malformed(f"no symbol in {shown(answer)}")
    return RIGHT if words[-1] == symbol else wrong(f"{shown(answer)}, expected {symbol}")


CHEMISTRY = Task("chemistry", "names, symbols and atomic numbers of elements", _chemistry)


TASKS = (GEOGRAPHY, PROGRAMMING_HISTORY, CHEMISTRY)
