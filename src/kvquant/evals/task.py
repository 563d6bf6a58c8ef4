"""A task: a generator of questions from seeds, each with the function that grades its answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvquant.errors import UsageError
from kvquant.evals.outcome import Graded, Outcome, malformed
from kvquant.evals.reply import UNPARSED, Reply, ToolCall, is_refusal, strip_reasoning

Parameters = Mapping[str, Any]

GRADING_VERSION = 1
"""Raised by every change of which answers are right that is not one task's: of `grade` and what it calls."""

_MOST_REPEATS = 2000
"""Draws without a new question after which a task is taken to have no more."""


@dataclass(frozen=True)
class Question:
    """One variant of a task.

    check: grades an answer, its reasoning already removed. tools: the request's ``tools`` field, empty for
    none. labels: what varies between the samples of a test and may explain its result, such as a depth.
    """

    prompt: str
    check: Callable[[str, tuple[ToolCall, ...]], Graded]
    tools: tuple[Mapping[str, Any], ...] = ()
    labels: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Makes questions. parameters: the names a suite may set, with their defaults.

    version: raised by every change of what is asked, or of which answers are right; runs of two versions do
    not compare.
    """

    name: str
    about: str
    generate: Callable[[random.Random, Parameters], Question]
    parameters: Parameters = field(default_factory=dict)
    version: int = 1


def text_check(check: Callable[[str], Graded]) -> Callable[[str, tuple[ToolCall, ...]], Graded]:
    """Return the check of a question whose answer is text; a tool call is then malformed."""

    def checked(answer: str, tool_calls: tuple[ToolCall, ...]) -> Graded:
        if not answer:
            return malformed("a tool call instead of an answer" if tool_calls else "an empty answer")
        return check(answer)

    return checked


def questions(task: Task, n: int, seed: int, test: str, parameters: Parameters) -> list[Question]:
    """Return the first ``n`` questions of a test, no two with the same prompt and tools.

    The same seed and test name give the same sequence, of which a smaller ``n`` is a prefix. Raises
    UsageError when the task has fewer.
    """
    rng = random.Random(f"{seed}/{test}")
    chosen = {**task.parameters, **parameters}
    found: dict[tuple[str, str], Question] = {}
    repeats = 0
    while len(found) < n:
        question = task.generate(rng, chosen)
        asked = (question.prompt, repr(question.tools))
        if asked in found:
            repeats += 1
            if repeats == _MOST_REPEATS:
                raise UsageError(
                    f"the test {test} has about {len(found)} different questions, not {n}; lower --n"
                )
            continue
        repeats = 0
        found[asked] = question
    return list(found.values())


def grade(question: Question, reply: Reply) -> Graded:
    """Grade a reply: first whether it is complete, then what the task says, then whether it declines."""
    if reply.finish_reason == UNPARSED:
        return malformed(reply.text)
    answer = strip_reasoning(reply.text)
    if answer is None:
        return Graded(Outcome.TRUNCATED, "the reasoning does not end")
    if reply.finish_reason == "length":
        return Graded(Outcome.TRUNCATED, "cut off by the token limit")
    thought = reply.reasoning.strip() or reply.text.strip()
    if thought and not answer and not reply.tool_calls:
        return Graded(Outcome.REASONING_ONLY, f"{len(thought)} characters of reasoning and no answer")
    graded = question.check(answer, reply.tool_calls)
    if graded.outcome is not Outcome.RIGHT and is_refusal(answer):
        return Graded(Outcome.REFUSAL, graded.detail)
    return graded
