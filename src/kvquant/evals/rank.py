"""Runs in order of quality and speed together, and which run to ask what."""

from __future__ import annotations

from collections.abc import Sequence

from kvquant.errors import UsageError
from kvquant.evals.compare import check_comparable, count_flips, pairs
from kvquant.evals.records import Run, SampleRecord
from kvquant.evals.statistics import bootstrap_mean, mcnemar
from kvquant.evals.summary import categories, in_category, is_right
from kvquant.results.comparison import TOTAL, RankedRun, Ranking, Route

SPEED_OF_ONE_SECONDS = 60.0
LEAST_SPEED = 0.1
ALPHA = 0.05


def composite_score(weighted_quality: float, mean_wall_seconds: float) -> float:
    """Return quality × max(0.1, 60 / seconds), the score of a published ranking for RK3588 boards.

    weighted_quality: the sum of the weights of what was right. Raises UsageError unless seconds are positive.
    """
    if not mean_wall_seconds > 0:
        raise UsageError(f"a mean time of {mean_wall_seconds:g} s gives no score; it must be positive")
    return weighted_quality * max(LEAST_SPEED, SPEED_OF_ONE_SECONDS / mean_wall_seconds)


def ranking_of(runs: Sequence[Run]) -> Ranking:
    """Return the order of the runs and which to ask what. Raises UsageError as `rank` does."""
    return Ranking(tuple(rank(runs)), tuple(routes(runs)))


def rank(runs: Sequence[Run]) -> list[RankedRun]:
    """Return the runs, best score first, those without a score last. Raises UsageError when they were asked
    different questions or hold no answer.
    """
    for run in runs:
        check_comparable(runs[0], run)
        if not _answered(run):
            raise UsageError(f"{run.folder} has no finished sample; run kvquant eval there again")
    ranked = [_ranked(run) for run in runs]
    return sorted(ranked, key=lambda entry: (entry.score is None, -(entry.score or 0.0)))


def routes(runs: Sequence[Run]) -> list[Route]:
    """Return the best run per category that any of them has answers in."""
    found = []
    for category in categories(runs[0]):
        with_samples = [run for run in runs if _answered(run, category)]
        if not with_samples:
            continue
        best = min(with_samples, key=lambda run: _merit(run, category))
        level = []
        for other in with_samples:
            flips = count_flips(pairs(best, other, category))
            if other is not best and mcnemar(flips.n_lost, flips.n_gained) > ALPHA:
                level.append(str(other.folder))
        minus_rate, seconds = _merit(best, category)
        found.append(Route(category, str(best.folder), -minus_rate, seconds, tuple(level)))
    return found


def _answered(run: Run, category: str = TOTAL) -> list[SampleRecord]:
    return in_category(run.samples, category)


def _ranked(run: Run) -> RankedRun:
    quality = _quality(run)
    seconds = [sample.wall_seconds for sample in _answered(run)]
    mean = _mean(seconds)
    # Neighbours in time share the machine's temperature and load.
    block = max(1, round(len(seconds) ** (1 / 3)))
    return RankedRun(
        run=str(run.folder),
        model=run.info.model,
        quality=quality,
        most_quality=sum(test.weight for test in run.info.tests),
        wall_seconds=mean,
        wall_seconds_interval=bootstrap_mean(seconds, block),
        score=None if quality is None else composite_score(quality, mean),
    )


def _quality(run: Run) -> float | None:
    by_test: dict[str, list[SampleRecord]] = {test.name: [] for test in run.info.tests}
    for sample in _answered(run):
        by_test.setdefault(sample.test, []).append(sample)
    if not all(by_test.values()):
        return None
    return sum(test.weight * _rate(by_test[test.name]) for test in run.info.tests)


def _merit(run: Run, category: str) -> tuple[float, float]:
    """What orders runs in a category, best first: rate, then seconds."""
    samples = _answered(run, category)
    return -_rate(samples), _mean([sample.wall_seconds for sample in samples])


def _rate(samples: Sequence[SampleRecord]) -> float:
    return sum(map(is_right, samples)) / len(samples)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
