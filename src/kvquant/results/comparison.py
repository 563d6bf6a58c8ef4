"""Runs of a suite, one by itself, paired with a baseline, and in order: what compare, rank and eval print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

TOTAL = "total"
"""The category that sums up the others."""


class Verdict(StrEnum):
    """What the rules of a suite make of what was measured (docs/evaluation.md).

    BASELINE and FAILED are said of a whole policy only.
    """

    BASELINE = "baseline"
    SAFE = "safe"
    COSTS = "costs"
    BROKEN = "broken"
    CANNOT_TELL = "cannot tell"
    FAILED = "failed"


class Interval(NamedTuple):
    """A confidence interval at 95 %."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Rate:
    """A share of right answers and how sure it is."""

    rate: float | None
    interval: Interval | None


@dataclass(frozen=True)
class CategorySummary:
    """One category of a run, or ``total``.

    n: samples with an answer. rate: of right ones among them, None without any, with its Wilson interval.
    outcomes: samples by outcome, those without an answer included.
    """

    category: str
    n: int
    rate: float | None
    interval: Interval | None
    outcomes: Mapping[str, int]

    @property
    def n_right(self) -> int:
        """Samples answered right."""
        return self.outcomes.get("right", 0)


@dataclass(frozen=True)
class TaskRow:
    """One category, or ``total``, of a run paired with the baseline. Rates are None without pairs.

    n: pairs. n_both: right in both. n_lost: right in the baseline only. n_gained: in the other run only.
    change: of the rate, with the interval for paired rates. p: exact McNemar. p_holm: adjusted for the number
    of runs compared with the baseline. minimum_detectable_effect: the smallest change such a run would have
    shown. n_unanswered: samples of both runs that are no pair because one has no answer. reason: why a row
    cannot tell, and what to change.
    """

    category: str
    n: int
    n_both: int
    n_lost: int
    n_gained: int
    baseline: Rate
    other: Rate
    change: Estimate
    p: float
    p_holm: float
    minimum_detectable_effect: float | None
    verdict: Verdict
    n_unanswered: int = 0
    reason: str = ""

    @property
    def n_right(self) -> int:
        """Pairs that the baseline answered right: what there is to lose."""
        return self.n_both + self.n_lost


def total_row(rows: tuple[TaskRow, ...]) -> TaskRow | None:
    """Return the row over all categories, None where nothing was compared."""
    return next((row for row in rows if row.category == TOTAL), None)


@dataclass(frozen=True)
class ComparedRun:
    """One run against the baseline: its categories, then the total.

    run: its folder. n_unpaired: samples that only one of the two has. n_unanswered: of those both have, the
    ones that one of the two has no answer to.
    """

    run: str
    n_unpaired: int
    summary: tuple[CategorySummary, ...]
    rows: tuple[TaskRow, ...]
    model: str = ""
    n_unanswered: int = 0


@dataclass(frozen=True)
class Comparison:
    """`kvquant compare --json`: the baseline by itself, then every other run against it.

    baseline: its folder. rules: of the suite, by which the verdicts were made.
    """

    baseline: str
    rules: Mapping[str, float]
    summary: tuple[CategorySummary, ...]
    comparisons: tuple[ComparedRun, ...]
    model: str = ""
    suite: str = ""


@dataclass(frozen=True)
class RankedRun:
    """One run in the order of a score.

    quality: sum over tests of weight times rate, None while a test has no answer; so is score. wall_seconds:
    mean over samples, its interval by block bootstrap, None for too few samples.
    """

    run: str
    model: str
    quality: float | None
    most_quality: float
    wall_seconds: float
    wall_seconds_interval: Interval | None
    score: float | None


@dataclass(frozen=True)
class Route:
    """The run to ask in a category: the most right answers, the faster where they are equal.

    rate, wall_seconds: of that run in that category. level: runs that the paired test cannot tell from it.
    """

    category: str
    run: str
    rate: float
    wall_seconds: float
    level: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """`kvquant rank --json`: runs, best score first, and which to ask what."""

    ranking: tuple[RankedRun, ...]
    routing: tuple[Route, ...]
