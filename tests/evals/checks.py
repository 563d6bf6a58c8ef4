"""Properties of the statistics, as functions of an implementation, so that broken ones can be tried too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import NormalDist, fmean

from kvquant.results.comparison import Interval

Z = NormalDist().inv_cdf(0.975)


def check_mcnemar(mcnemar: Callable[[int, int], float], n_lost: int, n_gained: int) -> None:
    """Equals the sum of all binomial outcomes that are at most as likely; symmetric."""
    n = n_lost + n_gained
    likely = [math.comb(n, k) for k in range(n + 1)]
    expected = Fraction(sum(count for count in likely if count <= likely[n_lost]), 2**n)
    assert math.isclose(mcnemar(n_lost, n_gained), float(expected), rel_tol=1e-9)
    assert mcnemar(n_lost, n_gained) == mcnemar(n_gained, n_lost)


def check_wilson(wilson: Callable[[int, int], Interval | None], n_right: int, n: int) -> None:
    """Each bound is the rate whose standard error puts the observed rate Z away, or the end of the scale."""
    found = wilson(n_right, n)
    if n == 0:
        assert found is None
        return
    assert found is not None
    rate = n_right / n
    assert 0 <= found.low <= rate <= found.high <= 1
    assert found.low < found.high
    for bound, end in ((found.low, 0.0), (found.high, 1.0)):
        if not math.isclose(bound, end, abs_tol=1e-12):
            error = math.sqrt(bound * (1 - bound) / n)
            assert math.isclose(abs(rate - bound), Z * error, rel_tol=1e-6)
    assert (n_right == 0) == math.isclose(found.low, 0, abs_tol=1e-12)
    assert (n_right == n) == math.isclose(found.high, 1, abs_tol=1e-12)


def check_difference(
    difference: Callable[[int, int, int], Interval | None], n_lost: int, n_gained: int, n: int
) -> None:
    """Antisymmetric, never without a width, inside [-1, 1], on the side of the larger count."""
    found = difference(n_lost, n_gained, n)
    if n == 0:
        assert found is None
        return
    mirrored = difference(n_gained, n_lost, n)
    assert found is not None and mirrored is not None
    assert math.isclose(found.low, -mirrored.high, abs_tol=1e-12)
    assert -1 <= found.low < found.high <= 1
    middle = (found.low + found.high) / 2
    assert middle * (n_gained - n_lost) >= -1e-12
    assert found.high - found.low > 2 / (n + 2)


def check_holm(holm: Callable[[Sequence[float]], list[float]], p_values: list[float]) -> None:
    """The definition, written as a maximum over the smaller p-values."""
    found = holm(p_values)
    m = len(p_values)
    order = sorted(range(m), key=lambda i: p_values[i])
    for place, index in enumerate(order):
        steps = [(m - rank) * p_values[order[rank]] for rank in range(place + 1)]
        assert found[index] == min(1.0, max(steps))
    assert all(adjusted >= min(1.0, p) for adjusted, p in zip(found, p_values, strict=True))


def check_median_interval(
    interval: Callable[[Sequence[float]], Interval | None], values: list[float]
) -> None:
    """Two of the values, as many below the one as above the other; the miss of that pair is at most 5 %, that
    of the next inner pair is more; None where no pair is wide enough.
    """
    found = interval(values)
    n = len(values)
    ordered = sorted(values)

    def miss(cut: int) -> Fraction:
        """How often the median lies outside the values left after cutting ``cut`` at each end."""
        return 2 * Fraction(sum(math.comb(n, k) for k in range(cut + 1)), 2**n)

    allowed = [cut for cut in range(n // 2) if miss(cut) <= Fraction(5, 100)]
    if not allowed:
        assert found is None
        return
    assert found is not None
    assert (found.low, found.high) == (ordered[allowed[-1]], ordered[n - 1 - allowed[-1]])


def check_bootstrap(
    bootstrap: Callable[[Sequence[float], int], Interval | None], values: list[float], block: int
) -> None:
    """None below two blocks, the mean inside, the range as bounds, no width only for equal values, shifts."""
    found = bootstrap(values, block)
    if len(values) < 2 * block:
        assert found is None
        return
    assert found is not None
    slack = 1e-9 * max(1.0, *(abs(value) for value in values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    if len(set(values)) == 1:
        assert found.high - found.low <= slack
    if len(values) >= 30 * block:
        assert found.low - slack <= fmean(values) <= found.high + slack
    shifted = bootstrap([value + 1000 for value in values], block)
    assert shifted is not None
    assert math.isclose(shifted.low, found.low + 1000, abs_tol=1e-6 + slack)


def check_block_bootstrap(
    bootstrap: Callable[[Sequence[float], Sequence[int]], Interval | None],
    sums: list[float],
    counts: list[int],
) -> None:
    """None where the blocks' means show no spread, else between the extreme means; doubles with the values,
    and does not change when every value is there twice.
    """
    found = bootstrap(sums, counts)
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    if len(set(means)) < 2:
        assert found is None
        return
    assert found is not None
    slack = 1e-9 * max(abs(mean) for mean in means)
    assert min(means) - slack <= found.low <= found.high <= max(means) + slack
    doubled = bootstrap([2 * total for total in sums], counts)
    twice = bootstrap([2 * total for total in sums], [2 * count for count in counts])
    assert doubled is not None and twice is not None
    for bound, twofold, same in zip(found, doubled, twice, strict=True):
        assert math.isclose(twofold, 2 * bound, rel_tol=1e-9, abs_tol=slack)
        assert math.isclose(same, bound, rel_tol=1e-9, abs_tol=slack)
