"""The bounds of checks.py cannot be lowered: inputs that reach them, and inputs beyond each promise."""

from __future__ import annotations

import numpy as np
import pytest

from formats.layouts import GRIDS, error_bound
from kvquant.formats.ops_numpy import HALF
from kvquant.formats.registry import get_format

PEAK_FIRST = {"q8_0": 127.0, "q4_0": -8.0, "q5_0": -16.0, "q4_1": 15.0, "q5_1": 31.0}


def block(*values: float) -> np.ndarray:
    """Return one block (1, 32) that starts with ``values``, the rest zeros."""
    x = np.zeros((1, 32), np.float32)
    x[0, : len(values)] = values
    return x


def worst(name: str, x: np.ndarray) -> float:
    """Return the largest error of ``x`` as a share of its bound."""
    fmt = get_format(name)
    packed = fmt.quantize(x)
    exact = x.astype(np.float64)
    return float((np.abs(fmt.dequantize(packed, 32) - exact) / error_bound(name, exact, packed)).max())


@pytest.mark.parametrize("name", GRIDS)
def test_half_a_step_is_reached(name: str) -> None:
    assert worst(name, block(PEAK_FIRST[name], 2.5)) > 0.9999


@pytest.mark.parametrize("name", ["q4_0", "q5_0"])
def test_a_whole_step_is_reached_opposite_the_peak(name: str) -> None:
    peak = PEAK_FIRST[name]
    fmt = get_format(name)
    x = block(peak, -peak)
    assert fmt.dequantize(fmt.quantize(x), 32)[0, 1] == -peak - 1
    assert worst(name, x) > 0.9999


@pytest.mark.parametrize("name", GRIDS)
def test_the_rounding_of_the_scale_is_reached(name: str) -> None:
    # Just above the middle of two fp16 numbers, and as low in its binade as can be: the largest relative
    # error.
    scale = 1 + 2.0**-11 + 2.0**-20
    top = GRIDS[name].top - GRIDS[name].zero
    just_above = np.nextafter(np.float32((top - 0.5) * scale), np.float32(999))
    assert worst(name, block(PEAK_FIRST[name] * scale, float(just_above))) > 0.999


@pytest.mark.parametrize("name", ["q4_1", "q5_1"])
def test_the_rounding_of_the_minimum_is_reached(name: str) -> None:
    low = 1024.5
    x = np.full((1, 32), low, np.float32)
    x[0, 0] = low + GRIDS[name].top
    x[0, 1] = low + 2.5
    # fp16 has no halves there: 1024.5 becomes 1024, and the tie above it goes up instead of down.
    fmt = get_format(name)
    assert fmt.dequantize(fmt.quantize(x), 32)[0, 2] == 1024
    assert worst(name, x - np.float32(2.5) * (np.arange(32) == 1)) > 0.49


def test_level_bound_is_nearly_reached_without_the_search() -> None:
    # Values in the widest gap, 89 … 113, half of them to either side, so that the fit cannot help.
    x = np.full((1, 32), 101.0, np.float32)
    x[0, 0] = -127
    x[0, 1::2] = np.nextafter(np.float32(101), np.float32(0))
    error = get_format("iq4_nl_cache").dequantize(get_format("iq4_nl_cache").quantize(x), 32) - x.astype(
        np.float64
    )
    weights = x.astype(np.float64) ** 2
    rms = np.sqrt((weights * error**2).sum() / weights.sum())
    assert rms / 127 > 0.8 * 14 / 127
    # The search finds a scale that suits this block better.
    searched = get_format("iq4_nl").dequantize(get_format("iq4_nl").quantize(x), 32) - x.astype(np.float64)
    assert (weights * searched**2).sum() < (weights * error**2).sum()


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q5_0", "q4_1", "q5_1"])
def test_no_idempotence_when_the_scale_vanishes(name: str) -> None:
    fmt = get_format(name)
    packed = fmt.quantize(block(1e-9, -0.5e-9))
    again = fmt.quantize(fmt.dequantize(packed, 32))
    assert again.tobytes() != packed.tobytes()


@pytest.mark.parametrize("name", ["q4_1", "q5_1"])
def test_no_idempotence_when_the_minimum_dwarfs_the_scale(name: str) -> None:
    fmt = get_format(name)
    # The minimum rounds up to 32768, where float32 numbers are twice as far apart as below it.
    x = np.full((40, 32), np.nextafter(np.float32(32768), np.float32(0)))
    x[:, 0] = 32768 + np.arange(1, 41) * np.float32(2.0**-8)
    packed = fmt.quantize(x)
    assert (fmt.quantize(fmt.dequantize(packed, 32)) != packed).any()


def test_no_idempotence_of_the_search() -> None:
    fmt = get_format("iq4_nl")
    packed = fmt.quantize(np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32))
    again = fmt.quantize(fmt.dequantize(packed, 32))
    assert 0 < (again != packed).any(axis=1).mean() < 1


def test_no_power_of_two_when_the_scale_leaves_the_normal_range() -> None:
    fmt = get_format("q8_0")
    x = np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32)
    small = np.float32(2.0**-20)
    assert (fmt.dequantize(fmt.quantize(x * small), 32) != fmt.dequantize(fmt.quantize(x), 32) * small).any()


def test_no_sign_symmetry_with_a_minimum() -> None:
    fmt = get_format("q4_1")
    x = block(15.0, 0.5)
    assert (fmt.dequantize(fmt.quantize(-x), 32) != -fmt.dequantize(fmt.quantize(x), 32)).any()


def test_rounding_half_away_is_exact_around_every_tie() -> None:
    # trunc(y + copysign(HALF, y)), the form q8_0 rounds by, against the definition in exact arithmetic.
    ties = np.arange(0, 128, dtype=np.float64)[:, None] + np.array([0.0, 0.5])
    near = np.float32(ties.reshape(-1, 1))
    for _ in range(3):
        near = np.concatenate(
            [near, np.nextafter(near, np.float32(-1)), np.nextafter(near, np.float32(999))], axis=1
        )
    y = np.concatenate([near.reshape(-1), -near.reshape(-1)])
    got = np.trunc(y + np.copysign(HALF, y))
    exact = y.astype(np.float64)
    np.testing.assert_array_equal(got, np.copysign(np.floor(np.abs(exact) + 0.5), exact))
