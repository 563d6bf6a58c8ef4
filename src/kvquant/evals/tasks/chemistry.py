"""Names, symbols and atomic numbers of the elements (eval/facts/elements.toml)."""

from __future__ import annotations

import random
import re

from kvquant.evals.answers import check_name, check_number, shown
from kvquant.evals.location import facts
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task, text_check


def _generate(rng: random.Random, _: Parameters) -> Question:
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


TASK = Task("chemistry", "names, symbols and atomic numbers of elements", _generate)
