"""What can become of one sample."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """Right or wrong, or why there is nothing to call either.

    MALFORMED: an answer, not in the form asked for. TRUNCATED: cut off by the token limit, in the answer or
    in the reasoning before it. REASONING_ONLY: the model stopped after its reasoning, with no answer.
    REFUSAL: the model declines. TIMEOUT: no answer in the time allowed; it counts against the model, since
    slowness may be what a policy costs. ERROR: the endpoint failed, or answered something that is no chat
    completion; that is no answer of the model, and the sample stays unanswered.
    """

    RIGHT = "right"
    WRONG = "wrong"
    MALFORMED = "malformed"
    TRUNCATED = "truncated"
    REASONING_ONLY = "reasoning only"
    REFUSAL = "refusal"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Graded:
    """An outcome and, where it is not RIGHT, one line that says what was seen instead."""

    outcome: Outcome
    detail: str = ""


RIGHT = Graded(Outcome.RIGHT)


def wrong(detail: str) -> Graded:
    """An answer in the form asked for that is not the right one."""
    return Graded(Outcome.WRONG, detail)


def malformed(detail: str) -> Graded:
    """An answer that is not in the form asked for."""
    return Graded(Outcome.MALFORMED, detail)
