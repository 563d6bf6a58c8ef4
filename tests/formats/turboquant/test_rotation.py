"""Rotations are orthogonal, fixed by their seed, and leave no structure that the codebook does not expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.turboquant.checks import check_distortion, check_orthogonal, unit_vectors
from kvquant.formats.turboquant import random_stream
from kvquant.formats.turboquant.codebook import lloyd_max
from kvquant.formats.turboquant.mse import TurboQuantMSE
from kvquant.formats.turboquant.rotation import HaarRotation, HadamardRotation, Rotation, haar_matrix

BOTH = (HadamardRotation, HaarRotation)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("width", [3, 4, 11, 64, 72, 80, 96, 101, 112, 127, 128, 192, 256, 576])
def test_orthogonal(kind: type[Rotation], width: int) -> None:
    check_orthogonal(kind(width, 0))


@given(width=st.integers(3, 300), seed=st.integers(0, 2**64 - 1))
def test_hadamard_is_orthogonal_at_any_width_and_seed(width: int, seed: int) -> None:
    check_orthogonal(HadamardRotation(width, seed))


def test_check_orthogonal_notices_a_lossy_rotation_and_a_wrong_inverse() -> None:
    @dataclass(frozen=True)
    class Lossy(HadamardRotation):
        def forward(self, columns: Any) -> Any:
            out = super().forward(columns)
            out[0] *= np.float32(0.99)
            return out

    @dataclass(frozen=True)
    class NoInverse(HadamardRotation):
        def inverse(self, columns: Any) -> Any:
            return self.forward(columns)

    with pytest.raises(AssertionError, match="orthonormal"):
        check_orthogonal(Lossy(64, 0))
    with pytest.raises(AssertionError, match="transpose"):
        check_orthogonal(NoInverse(64, 0))


@pytest.mark.parametrize("kind", BOTH)
def test_seeds_differ_and_repeat(kind: type[Rotation]) -> None:
    x = unit_vectors(3, 96).T
    first, again, other = (kind(96, seed).forward(x.copy()) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05


def test_haar_signs_are_uniform() -> None:
    # LAPACK's Q alone has a diagonal of one sign; over seeds the Haar matrix's corner must average to zero.
    corners = [haar_matrix.__wrapped__(8, seed)[0, 0] for seed in range(400)]
    assert abs(np.mean(corners)) < 4 * np.std(corners) / 20


def _spiky(width: int) -> np.ndarray:
    """Return vectors that are hard to flatten: one-hot, two-hot, and noise under one massive channel."""
    one_hot = np.eye(width)
    noise = np.random.default_rng(0).standard_normal((width, width))
    noise[:, width // 3] *= 40
    rows = np.concatenate((one_hot, one_hot + np.roll(one_hot, 1, axis=0), noise))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("width", [64, 80, 101, 128, 256])
@pytest.mark.parametrize("bits", [2, 4])
def test_hadamard_flattens_spiky_vectors(width: int, bits: int) -> None:
    # Fixed signs leave some structure in one vector; averaged over seeds the exact distortion must come out.
    x = _spiky(width)
    errors = [np.mean(_errors(TurboQuantMSE(bits, seed=seed), x)) for seed in range(12)]
    assert np.mean(errors) == pytest.approx(lloyd_max(width, bits).distortion, rel=0.1)


def test_one_round_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # Proves that the test above can fail: signs and one transform leave a one-hot vector perfectly flat.
    def one_round(self: HadamardRotation, columns: Any) -> Any:
        from kvquant.formats.hadamard import walsh_hadamard

        columns *= np.float32(1 / np.sqrt(self.width))
        walsh_hadamard(columns, self.width)
        return columns

    monkeypatch.setattr(HadamardRotation, "forward", one_round)
    monkeypatch.setattr(HadamardRotation, "inverse", one_round)
    with pytest.raises(AssertionError, match="distortion"):
        check_distortion(TurboQuantMSE(2), np.eye(128, dtype=np.float32), lloyd_max(128, 2).distortion, 0.1)


def _errors(fmt: TurboQuantMSE, x: np.ndarray) -> np.ndarray:
    return np.sum((x - fmt.dequantize(fmt.quantize(x), x.shape[1])) ** 2, axis=1)


def test_splitmix64_matches_its_published_sequence() -> None:
    # The generator itself, without this project's stream starts: state 1234567, as in the reference C code.
    state = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert random_stream._mix(state).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_streams_are_distinct_and_balanced() -> None:
    a, b = (random_stream.words(0, stream, 1000) for stream in (0, 1))
    assert not np.intersect1d(a, b).size
    assert abs(random_stream.signs(3, 0, 10_000).mean()) < 0.04
    values = random_stream.gaussians(3, 1, 10_000)
    assert abs(values.mean()) < 0.04 and values.std() == pytest.approx(1, abs=0.03)
