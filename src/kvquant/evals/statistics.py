"""The statistics of rates and of paired runs. An uncertainty that is unknown is None, not 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from scipy.stats import binom, binomtest

from kvquant.results.comparison import Interval

LEVEL = 0.95
"""Confidence level of every interval."""

N_RESAMPLES = 2000


def wilson(n_right: int, n: int) -> Interval | None:
    """Return the Wilson score interval of the rate ``n_right / n``; None without samples.

    Wilson, JASA 22 (1927); scipy.stats.
    """
    if n == 0:
        return None
    found = binomtest(n_right, n).proportion_ci(LEVEL, method="wilson")
    return Interval(float(found.low), float(found.high))


def mcnemar(n_lost: int, n_gained: int) -> float:
    """Return the two-sided p of the exact McNemar test for paired samples.

    n_lost: samples right in the baseline only. n_gained: right in the other run only. Under the null
    hypothesis a flip goes either way with probability one half; without flips p is 1.
    """
    n_flips = n_lost + n_gained
    return float(binomtest(n_lost, n_flips).pvalue) if n_flips else 1.0


def paired_difference(n_lost: int, n_gained: int, n: int) -> Interval | None:
    """Return the interval of the change in rate, (n_gained - n_lost) / n; None without samples.

    Adjusted Wald (Bonett and Price, J. Educ. Behav. Stat. 37, 2012): unlike a bootstrap it has a width when
    nothing flipped.
    """
    if n == 0:
        return None
    lost, gained = (n_lost + 1) / (n + 2), (n_gained + 1) / (n + 2)
    change = gained - lost
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    half = z * math.sqrt((lost + gained - change**2) / (n + 2))
    return Interval(max(-1.0, change - half), min(1.0, change + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's step-down method, in the given order."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def minimum_detectable_effect(n: int, disagreement: float, alpha: float, power: float) -> float | None:
    """Return the smallest change of a rate that ``n`` paired samples show with probability ``power``.

    disagreement: share ψ of samples whose outcome differs between the runs. None without samples, or where
    the approximation exceeds 1. Normal approximation, (z(1 - alpha/2) + z(power)) √(ψ/n).
    """
    if n == 0:
        return None
    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    effect = z * math.sqrt(disagreement / n)
    return effect if effect <= 1 else None


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return the interval of the median between two of the values themselves; None for fewer than six.

    The narrowest symmetric pair of order statistics that covers the median of any continuous distribution
    with at least LEVEL, by the sign test (Conover, Practical Nonparametric Statistics, section 3.2). Of five
    values even the smallest and the largest cover it with 0.9375 only.
    """
    n = len(values)
    # So many values left out at each end keep the miss below 1 - LEVEL, one more would not.
    n_outside = int(binom.ppf((1 - LEVEL) / 2, n, 0.5)) - 1
    if n_outside < 0:
        return None
    ordered = sorted(values)
    return Interval(float(ordered[n_outside]), float(ordered[n - 1 - n_outside]))


def bootstrap_mean(values: Sequence[float], block: int = 1, seed: int = 0) -> Interval | None:
    """Return the percentile bootstrap interval of the mean; None for fewer than two blocks of values.

    block: neighbours drawn together, for values in an order in which neighbours resemble each other (circular
    block bootstrap, Politis and Romano 1992); 1 draws each value by itself.
    """
    n = len(values)
    if n < 2 * block:
        return None
    rng = np.random.default_rng(seed)
    circle = np.asarray([*values, *values[: block - 1]], dtype=np.float64)
    sums = np.convolve(circle, np.ones(block), mode="valid")
    n_blocks = -(-n // block)
    # The last block is cut so that every resample has n values.
    kept = n - (n_blocks - 1) * block
    tails = np.convolve(circle[: n + kept - 1], np.ones(kept), mode="valid")
    starts = rng.integers(0, n, size=(N_RESAMPLES, n_blocks))
    totals = sums[starts[:, 1:]].sum(axis=1) + tails[starts[:, 0]]
    low, high = np.quantile(totals / n, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(low), float(high))


def bootstrap_blocks(sums: Sequence[float], counts: Sequence[int], seed: int = 0) -> Interval | None:
    """Return the percentile bootstrap interval of ``sum(sums) / sum(counts)``, whole blocks drawn.

    sums, counts: of the values in each block, for values that resemble those of their own block only (block
    bootstrap, Carlstein, Ann. Stat. 14, 1986; blocks may differ in length). None for fewer than two blocks,
    and where all blocks have the same mean: drawing them again cannot show a spread.
    """
    n_blocks = len(sums)
    totals, sizes = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if n_blocks < 2 or np.ptp(totals / sizes) == 0:
        return None
    drawn = np.random.default_rng(seed).integers(0, n_blocks, size=(N_RESAMPLES, n_blocks))
    means = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(low), float(high))
