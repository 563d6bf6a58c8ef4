"""Runs in order of quality and speed together, and which run to ask what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvquant.errors import UsageError
from kvquant.evals.compare import check_comparable, count_flips
from kvquant.evals.outcome import Outcome
from kvquant.evals.records import Run, SampleRecord
from kvquant.evals.statistics import Interval, bootstrap_mean, mcnemar
from kvquant.evals.summary import categories, in_category

SPEED_OF_ONE_SECONDS = 60.0
LEAST_SPEED = 0.1
ALPHA = 0.05


@dataclass(frozen=True)
class Ranked:
    """One run. quality: sum over tests of weight times rate, None while a test has no sample; so is score.

    wall_seconds: mean over samples, its interval by block bootstrap, None for too few samples.
    """

    run: Run
    quality: float | None
    most_quality: float
    wall_seconds: float
    wall_interval: Interval | None
    score: float | None


@dataclass(frozen=True)
class Route:
    """The run to ask in a category: the most right answers, the faster where they are equal.

    rate, wall_seconds: of that run in that category. level: runs that the paired test cannot tell from it.
    """

    category: str
    run: Run
    rate: float
    wall_seconds: float
    level: tuple[Run, ...]


def composite_score(weighted_quality: float, mean_wall_seconds: float) -> float:
    """Return quality × max(0.1, 60 / seconds), the score of a published ranking for RK3588 boards.

    weighted_quality: the sum of the weights of what was right. Raises UsageError unless seconds are positive.
    """
    if not mean_wall_seconds > 0:
        raise UsageError(f"a mean time of {mean_wall_seconds:g} s gives no score; it must be positive")
    return weighted_quality * max(LEAST_SPEED, SPEED_OF_ONE_SECONDS / mean_wall_seconds)


def rank(runs: Sequence[Run]) -> list[Ranked]:
    """Return the runs, best score first, those without a score last. Raises UsageError when they were asked
    different questions or hold no sample.
    """
    for run in runs:
        check_comparable(runs[0], run)
        if not run.samples:
            raise UsageError(f"{run.folder} holds no finished sample; run kvquant eval there again")
    ranked = [_ranked(run) for run in runs]
    return sorted(ranked, key=lambda entry: (entry.score is None, -(entry.score or 0.0)))


def routes(runs: Sequence[Run]) -> list[Route]:
    """Return the best run per category that any of them has samples of."""
    found = []
    for category in categories(runs[0]):
        with_samples = [run for run in runs if in_category(run.samples, category)]
        if not with_samples:
            continue
        best = min(with_samples, key=lambda run: _merit(run, category))
        level = []
        for other in with_samples:
            flips = count_flips(best, other, category)
            if other is not best and mcnemar(flips.n_lost, flips.n_gained) > ALPHA:
                level.append(other)
        minus_rate, seconds = _merit(best, category)
        found.append(Route(category, best, -minus_rate, seconds, tuple(level)))
    return found


def _ranked(run: Run) -> Ranked:
    quality = _quality(run)
    seconds = [sample.wall_seconds for sample in run.samples]
    mean = _mean(seconds)
    # Neighbours in time share the machine's temperature and load.
    block = max(1, round(len(seconds) ** (1 / 3)))
    return Ranked(
        run=run,
        quality=quality,
        most_quality=sum(test.weight for test in run.info.tests),
        wall_seconds=mean,
        wall_interval=bootstrap_mean(seconds, block),
        score=None if quality is None else composite_score(quality, mean),
    )


def _quality(run: Run) -> float | None:
    by_test: dict[str, list[SampleRecord]] = {test.name: [] for test in run.info.tests}
    for sample in run.samples:
        by_test.setdefault(sample.test, []).append(sample)
    if not all(by_test.values()):
        return None
    return sum(test.weight * _rate(by_test[test.name]) for test in run.info.tests)


def _merit(run: Run, category: str) -> tuple[float, float]:
    """What orders runs in a category, best first: rate, then seconds."""
    samples = in_category(run.samples, category)
    return -_rate(samples), _mean([sample.wall_seconds for sample in samples])


def _rate(samples: Sequence[SampleRecord]) -> float:
    return sum(sample.outcome is Outcome.RIGHT for sample in samples) / len(samples)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
