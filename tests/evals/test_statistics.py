"""The statistics keep their definitions, and the checks notice when they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals import checks
from kvquant.evals.statistics import (
    Interval,
    bootstrap_blocks,
    bootstrap_mean,
    holm,
    mcnemar,
    median_interval,
    minimum_detectable_effect,
    paired_difference,
    wilson,
)

counts = st.one_of(st.sampled_from([0, 1, 5, 6]), st.integers(0, 80))
p_values = st.lists(
    st.one_of(st.sampled_from([0.0, 5e-324, 0.05, 0.5, 1.0]), st.floats(0, 1)), min_size=0, max_size=8
)
values = st.lists(
    st.one_of(st.sampled_from([0.0, -0.0, 1.0, 1e6]), st.floats(-100, 100)), min_size=0, max_size=80
)


@given(counts, counts)
def test_mcnemar(n_lost: int, n_gained: int) -> None:
    checks.check_mcnemar(mcnemar, n_lost, n_gained)


@given(counts, counts)
def test_wilson(n_right: int, n_wrong: int) -> None:
    checks.check_wilson(wilson, n_right, n_right + n_wrong)


@given(counts, counts, counts)
def test_paired_difference(n_lost: int, n_gained: int, n_same: int) -> None:
    checks.check_difference(paired_difference, n_lost, n_gained, n_lost + n_gained + n_same)


@given(p_values)
def test_holm(found: list[float]) -> None:
    checks.check_holm(holm, found)


@given(values, st.integers(1, 5))
def test_bootstrap(drawn: list[float], block: int) -> None:
    checks.check_bootstrap(lambda sample, width: bootstrap_mean(sample, width), drawn, block)


@given(values)
def test_median_interval(drawn: list[float]) -> None:
    checks.check_median_interval(median_interval, drawn)


blocks = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.0, 1.0, 1e6]), st.floats(-100, 100)), st.integers(1, 9)),
    max_size=40,
)


@given(blocks)
def test_block_bootstrap(drawn: list[tuple[float, int]]) -> None:
    checks.check_block_bootstrap(bootstrap_blocks, [total for total, _ in drawn], [n for _, n in drawn])


SPREAD = [float(i % 7) for i in range(60)]

BROKEN: list[tuple[str, Callable[[], None]]] = [
    ("one-sided", lambda: checks.check_mcnemar(lambda a, b: mcnemar(a, b) / 2, 1, 7)),
    ("chi-square", lambda: checks.check_mcnemar(lambda a, b: float(np.exp(-((a - b) ** 2) / (a + b))), 2, 9)),
    ("Wald", lambda: checks.check_wilson(_wald, 9, 10)),
    ("no samples", lambda: checks.check_wilson(lambda _k, _n: Interval(0.0, 1.0), 0, 0)),
    ("unadjusted", lambda: checks.check_difference(_wald_difference, 0, 0, 30)),
    ("one sign", lambda: checks.check_difference(lambda a, b, n: paired_difference(b, a, n), 3, 20, 50)),
    (
        "Bonferroni",
        lambda: checks.check_holm(lambda p: [min(1.0, len(p) * x) for x in p], [0.01, 0.02, 0.03]),
    ),
    ("not monotone", lambda: checks.check_holm(_without_maximum, [0.02, 0.021, 0.022])),
    ("standard deviation", lambda: checks.check_bootstrap(lambda v, _b: _shifted(v), SPREAD, 1)),
    ("a width from five", lambda: checks.check_median_interval(_range, [1.0, 2.0, 3.0, 4.0, 5.0])),
    ("wider than need be", lambda: checks.check_median_interval(_range, SPREAD)),
    ("quartiles", lambda: checks.check_median_interval(_quartiles, SPREAD)),
    ("blocks of one size", lambda: checks.check_block_bootstrap(_unweighted, [1.0, 9.0, 4.0], [1, 9, 2])),
    ("sums, not means", lambda: checks.check_block_bootstrap(_of_sums, [3.0, 8.0, 5.0], [1, 4, 2])),
    ("a spread of zeros", lambda: checks.check_block_bootstrap(_zero_width, [0.0, 0.0], [1, 2])),
    ("a width from nothing", lambda: checks.check_bootstrap(lambda v, _b: Interval(v[0], v[0]), [1.0], 1)),
]


def _wald(n_right: int, n: int) -> Interval:
    rate = n_right / n
    half = checks.Z * (rate * (1 - rate) / n) ** 0.5
    return Interval(rate - half, min(1.0, rate + half))


def _wald_difference(n_lost: int, n_gained: int, n: int) -> Interval:
    change = (n_gained - n_lost) / n
    half = checks.Z * ((n_lost + n_gained) / n / n) ** 0.5
    return Interval(change - half, change + half)


def _without_maximum(p: Any) -> list[float]:
    order = sorted(range(len(p)), key=lambda i: p[i])
    return [min(1.0, (len(p) - order.index(i)) * p[i]) for i in range(len(p))]


def _range(drawn: Any) -> Interval:
    return Interval(min(drawn), max(drawn))


def _quartiles(drawn: Any) -> Interval:
    ordered = sorted(drawn)
    return Interval(ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4])


def _unweighted(sums: Any, counts: Any) -> Interval | None:
    return bootstrap_blocks(sums, [1] * len(counts))


def _of_sums(sums: Any, _counts: Any) -> Interval | None:
    found = bootstrap_mean(sums)
    return None if found is None else Interval(found.low, found.high)


def _zero_width(_sums: Any, _counts: Any) -> Interval:
    return Interval(0.0, 0.0)


def _shifted(drawn: Any) -> Interval:
    found = bootstrap_mean(drawn)
    assert found is not None
    return Interval(found.low + 1, found.high + 1)


@pytest.mark.parametrize("broken", [broken for _, broken in BROKEN], ids=[name for name, _ in BROKEN])
def test_the_checks_see_broken_statistics(broken: Callable[[], None]) -> None:
    with pytest.raises(AssertionError):
        broken()


def test_six_flips_one_way_are_the_fewest_that_count() -> None:
    assert mcnemar(5, 0) > 0.05 >= mcnemar(6, 0)


def test_published_minimum_detectable_effects() -> None:
    """200 samples at 5 % disagreement: 4.4 points; 1000: 2.0."""
    for n, points in ((200, 4.4), (1000, 2.0)):
        effect = minimum_detectable_effect(n, 0.05, 0.05, 0.8)
        assert effect is not None and round(100 * effect, 1) == points


@given(st.integers(1, 5000), st.floats(0.001, 0.5))
def test_more_samples_detect_less(n: int, disagreement: float) -> None:
    few, many = (minimum_detectable_effect(m, disagreement, 0.05, 0.8) for m in (n, n + 1))
    assert many is None or few is None or many < few
    assert few is None or few <= 1


def test_what_is_not_known_is_none() -> None:
    assert wilson(0, 0) is None
    assert paired_difference(0, 0, 0) is None
    assert minimum_detectable_effect(0, 0.05, 0.05, 0.8) is None
    assert minimum_detectable_effect(1, 0.9, 0.05, 0.8) is None
    assert bootstrap_mean([1.0]) is None
    assert bootstrap_mean([1.0, 2.0, 3.0], block=2) is None


def test_blocks_widen_the_interval_of_values_that_resemble_their_neighbours() -> None:
    drift = [float(i // 20) for i in range(200)]
    alone, together = bootstrap_mean(drift), bootstrap_mean(drift, block=20)
    assert alone is not None and together is not None
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap_mean(list(rng.normal(size=50)), seed=i) for i in range(200)]
    covered = sum(interval is not None and interval.low <= 0 <= interval.high for interval in found)
    assert 178 <= covered <= 198
