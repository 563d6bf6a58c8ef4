"""What the tasks on made-up facts share: the chat questions of the reference model's test split.

A prompt lists pairs such as ``kobu=417`` among filler words and asks for some of them in a form. The right
answer stands in the prompt, so any model that reads well can give it; the shipped reference model was trained
on nothing else (docs/reference-model.md), on other pairs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy as np

from kvquant.evals.outcome import Graded
from kvquant.evals.task import Parameters, Question, text_check
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
