"""From noisy single measurements to costs: above the floor, drawn together, never free, never negative."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.results.comparison import Interval
from kvquant.results.search import Kl
from kvquant.search.costs import (
    LEAST_SHARE,
    Cost,
    Floor,
    can_show,
    coarsest,
    finest,
    format_noise,
    is_clear,
    side_costs,
)
from kvquant.search.sides import Side

TYPES = ("f16", "q8_0", "q5_0", "q4_0")
SIDES = tuple(Side(layer, side) for layer in range(12) for side in "kv")
NATS = 0.003
FLOOR = Floor(Kl(NATS, Interval(0.0028, 0.0032), 191), NATS, 0.0)


def kl(mean: float, error: float) -> Kl:
    return Kl(mean, Interval(mean - 1.96 * error, mean + 1.96 * error), 191)


def measured(values: Mapping[Side, float], error: float) -> dict[tuple[Side, str], Kl]:
    return {(place, "q4_0"): kl(NATS + value, error) for place, value in values.items()}


def test_the_coarsest_type_is_the_one_with_the_largest_error() -> None:
    assert coarsest(TYPES) == "q4_0"
    assert coarsest(("q8_0", "iq4_nl", "q4_0")) == "q4_0"
    assert finest(TYPES) == "q8_0"
    noises = [format_noise(name) for name in ("f16", "q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0")]
    assert noises == sorted(noises) and noises[0] < 1e-6


@given(st.lists(st.floats(-0.01, 1.0), min_size=len(SIDES), max_size=len(SIDES)), st.floats(1e-6, 0.1))
def test_costs_are_positive_and_no_finer_type_costs_more(values: list[float], error: float) -> None:
    found = side_costs(measured(dict(zip(SIDES, values, strict=True)), error), FLOOR, SIDES, TYPES)
    check_costs(found)


def check_costs(found: Mapping[tuple[Side, str], Cost]) -> None:
    """Every side has a price in every quantized type, and a finer type is never dearer."""
    for place in SIDES:
        fine, mid, coarse = (found[place, name].nats for name in ("q8_0", "q5_0", "q4_0"))
        assert 0 < fine < mid < coarse, place
        assert found[place, "f16"].nats == 0


def test_the_check_notices_a_free_side() -> None:
    free = {(place, name): Cost(0.0, 0.0, True) for place in SIDES for name in TYPES}
    with pytest.raises(AssertionError):
        check_costs(free)


def test_noise_alone_gives_equal_costs() -> None:
    rng = np.random.default_rng(0)
    noisy = {place: float(0.001 + rng.normal(0, 0.001)) for place in SIDES}
    found = side_costs(measured(noisy, 0.001), FLOOR, SIDES, TYPES)
    costs = [found[place, "q4_0"].nats for place in SIDES if place.side == "k"]
    raw = [noisy[place] for place in SIDES if place.side == "k"]
    assert np.std(costs) < 0.5 * np.std(raw)
    assert fmean(costs) == pytest.approx(fmean(raw), rel=0.3)


def test_what_is_far_above_the_noise_stays_as_it_was_measured() -> None:
    values = {place: 0.001 if place != Side(3, "k") else 0.5 for place in SIDES}
    found = side_costs(measured(values, 1e-4), FLOOR, SIDES, TYPES)
    assert found[Side(3, "k"), "q4_0"].nats == pytest.approx(0.5, rel=0.01)
    assert found[Side(3, "v"), "q4_0"].nats == pytest.approx(0.001, rel=0.05)


def test_a_finer_type_is_measured_where_it_shows_above_the_floors_noise_though_not_above_the_coarsests() -> (
    None
):
    large = kl(4.98, 0.3)
    assert (large.mean - NATS) * format_noise("q8_0") / format_noise("q4_0") < 0.3
    assert can_show(large, FLOOR, 0, "q8_0", "q4_0")
    assert not can_show(kl(0.004, 1e-4), FLOOR, 0, "q8_0", "q4_0")
    assert not can_show(kl(4.98, 3.0), FLOOR, 0, "q8_0", "q4_0"), "it is not above the floor itself"


def test_one_side_that_costs_thousands_of_times_as_much_makes_the_others_no_dearer() -> None:
    """As measured on Qwen2.5-Coder-1.5B: K of layer 0 costs 4.98, that of most others about 0.0005."""
    rng = np.random.default_rng(0)
    given_ = {(place, "q4_0"): kl(NATS + float(0.0005 + rng.normal(0, 2e-4)), 2e-4) for place in SIDES}
    given_[Side(0, "k"), "q4_0"] = kl(NATS + 4.98, 0.3)
    given_[Side(1, "k"), "q4_0"] = kl(NATS + 0.0286, 0.009)
    found = side_costs(given_, FLOOR, SIDES, TYPES)
    assert found[Side(0, "k"), "q4_0"].nats == pytest.approx(4.98, rel=0.02)
    assert 0.015 < found[Side(1, "k"), "q4_0"].nats < 0.0286
    others = [found[place, "q4_0"].nats for place in SIDES if place.side == "k" and place.layer > 1]
    assert 0.0002 < min(others) <= max(others) < 0.0008


def test_a_side_measured_below_the_floor_costs_a_little_all_the_same() -> None:
    values = {place: 0.1 if place.layer else -0.002 for place in SIDES}
    found = side_costs(measured(values, 1e-4), FLOOR, SIDES, TYPES)
    assert found[Side(0, "k"), "q4_0"].nats >= LEAST_SHARE * 0.05


def test_a_finer_type_counts_as_measured_where_it_shows_and_as_scaled_where_it_does_not() -> None:
    values = dict.fromkeys(SIDES, 0.1)
    given_ = measured(values, 1e-3)
    shows, hidden = Side(2, "k"), Side(4, "k")
    given_[shows, "q5_0"] = kl(NATS + 0.06, 1e-3)
    given_[hidden, "q5_0"] = kl(NATS + 1e-4, 1e-3)
    found = side_costs(given_, FLOOR, SIDES, TYPES)
    assert found[shows, "q5_0"].nats == pytest.approx(0.06) and found[shows, "q5_0"].measured
    scaled = found[Side(6, "k"), "q5_0"].nats
    assert scaled == pytest.approx(0.1 * format_noise("q5_0") / format_noise("q4_0"), rel=0.01)
    # What was measured bounds it: 0.0001 and two standard errors, below the scaled 0.025.
    assert found[hidden, "q5_0"].nats == pytest.approx(1e-4 + 1.96e-3, rel=0.01)


def test_clear_is_beyond_the_interval_and_unknown_is_not() -> None:
    assert is_clear(kl(0.01, 1e-3), NATS)
    assert not is_clear(kl(0.004, 1e-3), NATS)
    assert not is_clear(Kl(1.0, None, 8), NATS)


def test_the_floor_falls_with_the_layers_that_come_after_and_no_probe_alone_moves_it() -> None:
    probes = {layer: kl(0.004 - 1e-4 * layer, 1e-4) for layer in (0, 7, 15, 22, 29)}
    line = Floor.through(FLOOR.whole, {**probes, 15: kl(0.5, 1e-4)})
    assert line.at(0) == pytest.approx(0.004) and line.at(29) == pytest.approx(0.0011)
    assert line.at(100) == 0
    rising = Floor.through(FLOOR.whole, {0: kl(0.001, 1e-4), 29: kl(0.002, 1e-4)})
    assert rising.at(0) == rising.at(29) == pytest.approx(0.0015)
    assert Floor.through(FLOOR.whole, {}).at(3) == NATS


def test_late_layers_are_held_against_their_own_floor() -> None:
    """The same measurement is a cost at the last layer and nothing at the first."""
    line = Floor(FLOOR.whole, 0.004, -0.0003)
    found = side_costs({(place, "q4_0"): kl(0.004, 1e-5) for place in SIDES}, line, SIDES, TYPES)
    assert found[Side(11, "k"), "q4_0"].nats == pytest.approx(0.0033, rel=0.01)
    assert found[Side(0, "k"), "q4_0"].nats < 0.0002
