"""Codebooks are the optimal quantizers of the exact coordinate density, and coders apply them exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.turboquant.checks import check_codes_nearest, check_stationary
from kvquant.errors import FormatError
from kvquant.formats.turboquant.codebook import lloyd_max
from kvquant.formats.turboquant.coder import Coder, coder

# E‖x - x̃‖² in the Gaussian limit, b = 1..4 (J. Max, "Quantizing for minimum distortion", 1960, table I).
GAUSSIAN_LIMIT = {1: 0.36338, 2: 0.11748, 3: 0.03455, 4: 0.00950}


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("width", [3, 4, 5, 64, 80, 128, 256, 576, 4096])
def test_stationary(width: int, bits: int) -> None:
    book = lloyd_max(width, bits)
    check_stationary(book)
    assert np.all(np.diff(book.centroids) > 0)
    np.testing.assert_array_equal(book.centroids, -book.centroids[::-1])
    np.testing.assert_array_equal(book.boundaries, -book.boundaries[::-1])


def test_check_stationary_notices_moved_centroids_and_boundaries() -> None:
    book = lloyd_max(128, 3)
    with pytest.raises(AssertionError, match="midway"):
        check_stationary(replace(book, boundaries=book.boundaries + 1e-6))
    # Midway boundaries with centroids that are not means: what a table from another density looks like.
    with pytest.raises(AssertionError, match="mean"):
        check_stationary(replace(book, centroids=book.centroids * 1.01, boundaries=book.boundaries * 1.01))


def test_uniform_density_at_width_three() -> None:
    # At d = 3 a coordinate is uniform on [-1, 1] (Archimedes), and so is its optimal quantizer.
    for bits in range(1, 9):
        n = 1 << bits
        np.testing.assert_allclose(lloyd_max(3, bits).centroids, (2 * np.arange(n) + 1) / n - 1, atol=1e-14)


def test_one_bit_centroid_is_the_mean_magnitude() -> None:
    for width in (4, 64, 128, 1000):
        mean = math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)
        assert lloyd_max(width, 1).centroids[1] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("bits", range(1, 5))
def test_distortion_tends_to_the_gaussian_quantizers(bits: int) -> None:
    assert lloyd_max(4096, bits).distortion == pytest.approx(GAUSSIAN_LIMIT[bits], rel=1e-3)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("width", [64, 128, 256])
def test_distortion_lies_between_the_papers_bounds(width: int, bits: int) -> None:
    assert 4.0**-bits <= lloyd_max(width, bits).distortion <= math.sqrt(3) * math.pi / 2 * 4.0**-bits


@pytest.mark.parametrize(("width", "bits"), [(2, 4), (4097, 4), (0, 1), (-5, 1), (128, 0), (128, 9)])
def test_outside_the_range_is_an_error(width: int, bits: int) -> None:
    with pytest.raises(FormatError, match=r"outside 1\.\.8|takes rows of 3 to 4096"):
        lloyd_max(width, bits)


def _near(table: Coder) -> np.ndarray:
    """Return the boundaries and their neighbours in float32, both zeros, and values past both ends."""
    t = table.boundaries
    above, below = np.nextafter(t, np.float32(2)), np.nextafter(t, np.float32(-2))
    return np.concatenate((t, above, below, np.float32([0.0, -0.0, 1, -1, 2, -2])))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("width", [3, 5, 64, 128, 4096])
def test_codes_count_the_boundaries_below(width: int, bits: int) -> None:
    table = coder(width, bits)
    y = np.concatenate((_near(table), np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)))
    np.testing.assert_array_equal(table.encode(y), np.searchsorted(table.boundaries, y, side="right"))
    check_codes_nearest(table.encode, table.centroids, y)
    np.testing.assert_array_equal(table.decode(table.encode(y)), table.centroids[table.encode(y)])


@given(
    width=st.integers(3, 4096),
    bits=st.integers(1, 8),
    y=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50),
)
def test_codes_are_nearest_at_any_width(width: int, bits: int, y: list[float]) -> None:
    table = coder(width, bits)
    check_codes_nearest(table.encode, table.centroids, np.array(y, np.float32))


def test_check_codes_nearest_notices_a_shifted_code() -> None:
    table = coder(128, 4)
    with pytest.raises(AssertionError, match="nearer"):
        check_codes_nearest(lambda y: np.minimum(table.encode(y) + 1, 15), table.centroids, table.boundaries)
