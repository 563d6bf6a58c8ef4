"""What the tasks on made-up facts share: the chat questions of the reference model's test split.

A prompt lists pairs such as ``kobu=417`` among filler words and asks for some of them in a form. The right
answer stands in the prompt, so any model that reads well can give it; the shipped reference model was trained
on nothing else (docs/reference-model.md), on other pairs."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

import numpy as np

from kvquant.evals.answers import check_number, shown
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.task import Parameters, Question, Task, text_check
from kvquant.reference.tasks import Split, chat_question

DEFAULTS = {"n_pairs": 8, "n_tokens": 120}
"""n_pairs: facts in the prompt. n_tokens: its length in tokens of the reference model, filler included."""

_PAIR = re.compile(r"([a-z]+)=(\d+)")


def draw(
    rng: random.Random, parameters: Parameters, kind: str, check: Callable[[str, str], Graded]
) -> Question:
    """Return a question of ``kind``; ``check`` is given the answer and the only right one."""
    n_pairs, n_tokens = int(parameters["n_pairs"]), int(parameters["n_tokens"])
    generator = np.random.default_rng(rng.getrandbits(64))
    drawn = chat_question(generator, Split.TEST, kind, n_pairs, n_tokens)
    labels = {"n_pairs": n_pairs, "n_tokens": n_tokens}
    return Question(drawn.user, text_check(lambda answer: check(answer, drawn.answer)), labels=labels)


def pairs_in(text: str) -> list[tuple[str, str]]:
    """Return the pairs ``key=value`` in ``text``."""
    return _PAIR.findall(text)


def _fact_value(rng: random.Random, parameters: Parameters) -> Question:
    """One of many made-up facts, asked for by its key; the number counts, in whatever words it comes."""
    return draw(rng, parameters, "pair", _check_fact_value)


def _check_fact_value(answer: str, right: str) -> Graded:
    ((_, value),) = pairs_in(right)
    return check_number(answer, int(value))


FACT_VALUE = Task("fact_value", "one of many made-up facts", _fact_value, DEFAULTS)


def _fact_call(rng: random.Random, parameters: Parameters) -> Question:
    """A look-up of a made-up key, written as a JSON object with the tool's name and arguments."""
    return draw(rng, parameters, "tool", _check_fact_call)


def _check_fact_call(answer: str, right: str) -> Graded:
    try:
        call = json.loads(answer)
        found = (str(call["name"]), str(call["arguments"]["key"]).strip())
    except (ValueError, KeyError, TypeError, RecursionError):
        return malformed(f"not a call: {shown(answer)}")
    expected = json.loads(right)
    is_right = found == (expected["name"], expected["arguments"]["key"])
    return RIGHT if is_right else wrong(f"{shown(answer)}, expected {right}")


FACT_CALL = Task("fact_call", "a tool call that names a made-up key", _fact_call, DEFAULTS)


def _fact_list(rng: random.Random, parameters: Parameters) -> Question:
    """Several of many made-up facts, asked for by their keys; each must be there and no other."""
    return draw(rng, parameters, "list", _check_fact_list)


def _check_fact_list(answer: str, right: str) -> Graded:
    found, expected = pairs_in(answer), pairs_in(right)
    if not found:
        return malformed(f"no key=value in {shown(answer)}")
    is_right = sorted(found) == sorted(expected)
    return RIGHT if is_right else wrong(f"{shown(answer)}, expected {shown(right)}")


FACT_LIST = Task("fact_list", "several of many made-up facts", _fact_list, DEFAULTS)


TASKS = (FACT_VALUE, FACT_CALL, FACT_LIST)
