"""A question about the present, for which the model has to search the web."""

from __future__ import annotations

import random

from kvquant.evals.answers import plain, shown
from kvquant.evals.location import facts
from kvquant.evals.outcome import RIGHT, Graded, wrong
from kvquant.evals.task import Parameters, Question, Task
from kvquant.evals.tasks._tools import TOOLS, tool_check

_SUBJECTS = (
    ("the current weather in {}", "weather"),
    ("today's news from {}", "news"),
    ("this week's concerts in {}", "concerts"),
    ("current hotel prices in {}", "hotel"),
)


def _generate(rng: random.Random, _: Parameters) -> Question:
    subject, word = rng.choice(_SUBJECTS)
    city = rng.choice(facts("countries"))[1]
    prompt = f"Find out about {subject.format(city)}. Use a tool to do so."
    check = tool_check("web_search", "query", lambda query: _check(query, (word, city)))
    return Question(prompt, check, TOOLS)


def _check(query: str, words: tuple[str, ...]) -> Graded:
    missing = [word for word in words if plain(word) not in plain(query)]
    return wrong(f"query {shown(query)} without {', '.join(missing)}") if missing else RIGHT


TASK = Task("web_search", "a call of web_search with a fitting query", _generate)
