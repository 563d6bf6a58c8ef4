"""Facts of one form in long filler, to be recalled exactly."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from kvquant.evals.answers import shown
from kvquant.evals.location import words
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task, text_check


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


def _needle(rng: random.Random, parameters: Parameters) -> Question:
    """One fact somewhere in a long text."""
    depth, n_words = float(rng.choice(parameters["depths"])), int(parameters["n_words"])
    (key,), code = keys(rng, 1), value(rng)
    text = haystack(rng, n_words, {sentence(key, code): depth})
    check = text_check(lambda answer: check_code(answer, code))
    return Question(ask(text, key), check, labels={"depth": depth, "n_words": n_words})


NEEDLE = Task(
    "needle", "one fact in a long text", _needle, {"n_words": 500, "depths": [0.0, 0.25, 0.5, 0.75, 1.0]}
)


def _multi_key(rng: random.Random, parameters: Parameters) -> Question:
    """Many facts of one form spread over a long text, of which one is asked for: the others distract."""
    n_keys, n_words = int(parameters["n_keys"]), int(parameters["n_words"])
    names = keys(rng, n_keys)
    codes = {name: value(rng) for name in names}
    depths = {name: index / max(1, n_keys - 1) for index, name in enumerate(names)}
    text = haystack(rng, n_words, {sentence(name, codes[name]): depths[name] for name in names})
    asked = rng.choice(names)
    check = text_check(lambda answer: check_code(answer, codes[asked]))
    labels = {"depth": depths[asked], "n_words": n_words, "n_keys": n_keys}
    return Question(ask(text, asked), check, labels=labels)


MULTI_KEY = Task(
    "multi_key", "one of many like facts in a long text", _multi_key, {"n_words": 500, "n_keys": 8}
)


TASKS = (NEEDLE, MULTI_KEY)
