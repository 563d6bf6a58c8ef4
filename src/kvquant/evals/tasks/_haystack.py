"""What the recall tasks share: filler of any length, keys with values, and an exact match."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from kvquant.evals.answers import shown
from kvquant.evals.location import words
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong


def keys(rng: random.Random, n: int) -> list[str]:
    """Return ``n`` different names such as "teal anchor", at most 256."""
    names = [f"{colour} {thing}" for colour in words("colours") for thing in words("objects")]
    return rng.sample(names, n)


def value(rng: random.Random) -> str:
    """Return a code of six digits."""
    return str(rng.randint(100000, 999999))


def sentence(key: str, code: str) -> str:
    """Return the sentence to be recalled."""
    return f"The code of the {key} is {code}."


def haystack(rng: random.Random, n_words: int, placed: Mapping[str, float]) -> str:
    """Return filler of about ``n_words`` words with sentences placed at depths from 0 (start) to 1 (end)."""
    parts = [words(name) for name in ("who", "did", "what", "when")]
    filler: list[str] = []
    left = n_words
    while left > 0:
        filler.append(" ".join(rng.choice(part) for part in parts) + ".")
        left -= len(filler[-1].split())
    at = sorted(((round(depth * len(filler)), text) for text, depth in placed.items()), reverse=True)
    for index, text in at:
        filler.insert(index, text)
    return " ".join(filler)


def ask(text: str, key: str) -> str:
    """Return the prompt: the text, then the question."""
    return f"{text}\n\nWhat is the code of the {key}? Answer with the six digits only."


def check_code(answer: str, code: str) -> Graded:
    """Grade by exact match; blanks, emphasis and a full stop around the digits do not matter."""
    stripped = answer.strip().strip("*`\"'. ")
    if stripped == code:
        return RIGHT
    if re.fullmatch(r"\d+", stripped):
        return wrong(f"{shown(stripped)}, expected {code}")
    return malformed(f"{shown(answer)} is not six digits alone")
