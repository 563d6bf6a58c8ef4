"""A function about palindromes, under varying rules for case and punctuation."""

from __future__ import annotations

import random
from typing import Any

from kvquant.evals.task import Parameters, Question, Task, text_check
from kvquant.evals.tasks._code import FORM, check_function

_NAMES = tuple(
    f"{verb}_{noun}"
    for verb in ("is", "check", "test", "find", "detect")
    for noun in ("palindrome", "mirror", "mirrored", "symmetric", "reversible", "palindromic")
)
_TEXTS = (
    "",
    "a",
    "Level",
    "level",
    "never odd or even",
    "Was it a car, or a cat I saw?",
    "ab",
    "1001",
    "10 01 ",
)


def _generate(rng: random.Random, _: Parameters) -> Question:
    name = rng.choice(_NAMES)
    folds_case, letters_only, counts = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.5
    rules = [
        "Upper and lower case count as the same." if folds_case else "Upper and lower case are different.",
        "Skip everything but letters and digits."
        if letters_only
        else "Every character counts, blanks and punctuation too.",
    ]
    if counts:
        what = f"{name}(texts) that returns how many strings in the list texts are palindromes"
        calls: list[list[Any]] = [[list(_TEXTS)], [[]], [list(_TEXTS[:3])]]
        expected: list[Any] = [
            sum(_is_palindrome(text, folds_case, letters_only) for text in texts) for (texts,) in calls
        ]
    else:
        what = f"{name}(text) that returns True if the string text is a palindrome, else False"
        calls = [[text] for text in _TEXTS]
        expected = [_is_palindrome(text, folds_case, letters_only) for text in _TEXTS]
    prompt = f"Write a Python function {what}. {' '.join(rules)} The empty string is a palindrome. {FORM}"
    return Question(prompt, text_check(lambda answer: check_function(answer, name, calls, expected)))


def _is_palindrome(text: str, folds_case: bool, letters_only: bool) -> bool:
    folded = text.lower() if folds_case else text
    kept = [letter for letter in folded if letter.isalnum() or not letters_only]
    return kept == kept[::-1]


TASK = Task("palindrome", "a Python function that recognises palindromes", _generate)
