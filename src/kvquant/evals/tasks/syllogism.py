"""Whether a conclusion follows from two premises, with terms that carry no meaning of their own."""

from __future__ import annotations

import random

from kvquant.evals.answers import ANSWER_LINE, check_choice
from kvquant.evals.location import words
from kvquant.evals.task import Parameters, Question, Task, text_check

Statement = tuple[str, int, int]
"""Quantifier and the two terms it relates: ("some-not", 0, 2) is "some X are not Z"."""

Form = tuple[Statement, Statement, Statement]

VALID: tuple[Form, ...] = (
    (("all", 0, 1), ("all", 1, 2), ("all", 0, 2)),
    (("no", 1, 2), ("all", 0, 1), ("no", 0, 2)),
    (("all", 1, 2), ("some", 0, 1), ("some", 0, 2)),
    (("no", 1, 2), ("some", 0, 1), ("some-not", 0, 2)),
    (("no", 2, 1), ("all", 0, 1), ("no", 0, 2)),
    (("all", 2, 1), ("some-not", 0, 1), ("some-not", 0, 2)),
)
INVALID: tuple[Form, ...] = (
    (("all", 0, 1), ("all", 2, 1), ("all", 0, 2)),
    (("all", 1, 0), ("all", 1, 2), ("all", 0, 2)),
    (("some", 0, 1), ("some", 1, 2), ("some", 0, 2)),
    (("no", 0, 1), ("no", 1, 2), ("no", 0, 2)),
    (("all", 0, 1), ("some", 1, 2), ("some", 0, 2)),
    (("all", 1, 2), ("no", 0, 1), ("no", 0, 2)),
)
_SENTENCES = {
    "all": "All {} are {}.",
    "no": "No {} are {}.",
    "some": "Some {} are {}.",
    "some-not": "Some {} are not {}.",
}


def _generate(rng: random.Random, _: Parameters) -> Question:
    # The same odds for both answers: always answering "valid" must score one half.
    expected, other, forms = rng.choice((("valid", "invalid", VALID), ("invalid", "valid", INVALID)))
    first, second, conclusion = rng.choice(forms)
    terms = rng.sample(words("nonsense"), 3)
    statements = (first, second, conclusion)
    said = [_SENTENCES[quantifier].format(terms[a], terms[b]) for quantifier, a, b in statements]
    prompt = (
        f"Premises: {said[0]} {said[1]} Conclusion: {said[2]} Does the conclusion follow from the premises "
        f"by logic alone? Say 'valid' or 'invalid'. {ANSWER_LINE}"
    )
    return Question(prompt, text_check(lambda answer: check_choice(answer, expected, (other,))))


TASK = Task("syllogism", "whether a conclusion follows from two premises", _generate)
