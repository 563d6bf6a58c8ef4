"""Puzzles with one right number or word: prices, rates, speeds, and whether a conclusion follows."""

from __future__ import annotations

import random

from kvquant.evals.answers import ANSWER_LINE, check_choice, check_number
from kvquant.evals.location import words
from kvquant.evals.task import Parameters, Question, Task, text_check

_PAIRS = (
    ("bat", "ball"),
    ("coat", "hat"),
    ("lamp", "bulb"),
    ("kettle", "mug"),
    ("desk", "tray"),
    ("drum", "stick"),
    ("tent", "rope"),
    ("frame", "photo"),
)


def _bat_and_ball(rng: random.Random, _: Parameters) -> Question:
    """Two things cost a sum together and differ by a given price: the answer that comes to mind is wrong."""
    dear, cheap = rng.choice(_PAIRS)
    price = rng.randrange(5, 100, 5)
    difference = rng.randrange(100, 2000, 25)
    prompt = (
        f"A {dear} and a {cheap} cost {_dollars(2 * price + difference)} together. The {dear} costs "
        f"{_dollars(difference)} more than the {cheap}. How many cents does the {cheap} cost? {ANSWER_LINE}"
    )
    return Question(prompt, text_check(lambda answer: check_number(answer, price)))


def _dollars(cents: int) -> str:
    return f"${cents // 100}.{cents % 100:02}"


BAT_AND_BALL = Task("bat_and_ball", "prices from a sum and a difference", _bat_and_ball)


_MACHINES = (("machines", "widgets"), ("ovens", "loaves"), ("printers", "posters"), ("looms", "scarves"))


def _rate_scaling(rng: random.Random, _: Parameters) -> Question:
    """Machines that make things at a rate: scale the number of machines and of things apart."""
    workers, things = rng.choice(_MACHINES)
    n, each, minutes = rng.randint(3, 12), rng.randint(1, 3), rng.randint(3, 20)
    m, rounds = rng.randint(20, 120), rng.randint(1, 4)
    prompt = (
        f"{n} {workers} take {minutes} minutes to make {n * each} {things}. At the same rate, how many "
        f"minutes do {m} {workers} take to make {m * each * rounds} {things}? {ANSWER_LINE}"
    )
    return Question(prompt, text_check(lambda answer: check_number(answer, minutes * rounds)))


RATE_SCALING = Task("rate_scaling", "the time many machines take for many things", _rate_scaling)


_THINGS = ("train", "car", "cyclist", "ship", "truck", "bus")


def _speed_distance(rng: random.Random, _: Parameters) -> Question:
    """Speed, time and distance: two are given."""
    thing, speed, hours = rng.choice(_THINGS), rng.randrange(15, 150, 5), rng.randint(2, 9)
    distance = speed * hours
    ask, expected = rng.choice(
        (
            (f"covers {distance} km in {hours} hours. What is its average speed in km/h?", speed),
            (f"moves at {speed} km/h for {hours} hours. How many kilometres does it cover?", distance),
            (f"moves at {speed} km/h. How many hours does it take for {distance} km?", hours),
        )
    )
    prompt = f"A {thing} {ask} {ANSWER_LINE}"
    return Question(prompt, text_check(lambda answer: check_number(answer, expected)))


SPEED_DISTANCE = Task("speed_distance", "one of speed, time and distance from the others", _speed_distance)


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


def _syllogism(rng: random.Random, _: Parameters) -> Question:
    """Whether a conclusion follows from two premises, with terms that carry no meaning of their own."""
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


SYLLOGISM = Task("syllogism", "whether a conclusion follows from two premises", _syllogism)


TASKS = (BAT_AND_BALL, RATE_SCALING, SPEED_DISTANCE, SYLLOGISM)
