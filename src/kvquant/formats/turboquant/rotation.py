"""Fixed random rotations of head vectors: randomised Hadamard and dense Haar.

The first takes O(d log d) at every width d, the second O(d²). Both take columns, (width, n): one vector per
column, so that each step is one operation on long contiguous rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from kvquant.formats.arrays import Array, cast, like, namespace
from kvquant.formats.hadamard import walsh_hadamard
from kvquant.formats.turboquant.random_stream import ROTATION_STREAM, gaussians, signs

_ODD_FACTORS = (3, 5, 7)


@dataclass(frozen=True)
class Rotation(ABC):
    """An orthogonal map of vectors of ``width`` values, fixed by ``seed``."""

    width: int
    seed: int

    @abstractmethod
    def forward(self, columns: Array) -> Array:
        """Rotate float32 (width, n); the argument may be overwritten."""

    @abstractmethod
    def inverse(self, columns: Array) -> Array:
        """Apply the transpose to float32 (width, n); the argument may be overwritten."""


@dataclass(frozen=True)
class HadamardRotation(Rotation):
    """Rounds of random signs followed by a flat, fast orthogonal transform K of a window of the vector.

    The window holds m values, the largest number up to the width without prime factors above 7 (the width
    itself for all usual heads: 64, 80, 96, 128, 192, 256, 576). K is the Kronecker product of the
    Walsh-Hadamard matrix of the power of two in m and, for each odd prime p in m, the p-point Hartley matrix
    (cos + sin)(2πjk/p)/√p: symmetric, orthogonal, no entry larger than √2^i/√m for i odd factors.

    When m is the width there are three rounds: after one or two, vectors with a few large entries, such as
    keys with outlier channels, still leave coordinates far from the density that the codebook assumes.
    Otherwise there are four, at the head and at the tail of the vector in turn, so that every coordinate
    meets every other.
    """

    def forward(self, columns: Array) -> Array:
        plan = _plan(self.width, self.seed)
        for start, factors in zip(plan.starts, plan.factors, strict=True):
            window = columns[start : start + plan.n_window]
            window *= like(factors, columns)
            _flat_transform(window, plan.power, plan.odd)
        return columns

    def inverse(self, columns: Array) -> Array:
        plan = _plan(self.width, self.seed)
        for start, factors in zip(reversed(plan.starts), reversed(plan.factors), strict=True):
            window = columns[start : start + plan.n_window]
            _flat_transform(window, plan.power, plan.odd)
            window *= like(factors, columns)
        return columns


@dataclass(frozen=True)
class HaarRotation(Rotation):
    """A dense rotation drawn uniformly from the orthogonal group: QR of a Gaussian matrix, as in the paper.

    The columns of Q take the signs of R's diagonal; without that Q is not uniform (Mezzadri, arXiv
    math-ph/0609050). Products are in float64 and rounded once, so two BLAS libraries disagree about a code
    only when a coordinate lies within about 1e-16 of a rounding tie.
    """

    def forward(self, columns: Array) -> Array:
        return cast(like(haar_matrix(self.width, self.seed), columns) @ cast(columns, "float64"), "float32")

    def inverse(self, columns: Array) -> Array:
        return cast(like(haar_matrix(self.width, self.seed), columns).T @ cast(columns, "float64"), "float32")


@lru_cache(maxsize=8)
def haar_matrix(width: int, seed: int) -> npt.NDArray[np.float64]:
    """Return the matrix of `HaarRotation`, float64 (width, width); row i gives rotated coordinate i."""
    gaussian = gaussians(seed, ROTATION_STREAM, width * width).reshape(width, width)
    q, r = np.linalg.qr(gaussian)
    matrix: npt.NDArray[np.float64] = q * np.sign(np.diag(r))
    return matrix


@dataclass(frozen=True)
class _Plan:
    """Where each round of a HadamardRotation works and what it multiplies by first."""

    n_window: int
    power: int  # the power of two in n_window
    odd: tuple[int, ...]  # its odd prime factors
    starts: tuple[int, ...]  # first row of each round's window
    factors: tuple[npt.NDArray[np.float32], ...]  # (n_window, 1) each: sign / sqrt(power)


@lru_cache(maxsize=256)
def _plan(width: int, seed: int) -> _Plan:
    n_window = next(m for m in range(width, 0, -1) if prod(_prime_factors(m)) == m)
    primes = _prime_factors(n_window)
    power = 1 << primes.count(2)
    starts = (0, 0, 0) if n_window == width else (0, width - n_window) * 2
    flips = signs(seed, ROTATION_STREAM, len(starts) * n_window).reshape(len(starts), n_window, 1)
    factors = (flips / np.sqrt(power)).astype(np.float32)
    return _Plan(n_window, power, tuple(p for p in primes if p != 2), starts, tuple(factors))


def _prime_factors(m: int) -> list[int]:
    """Return the prime factors of ``m`` that are 2, 3, 5 or 7, with multiplicity."""
    found = []
    for p in (2, *_ODD_FACTORS):
        while m % p == 0:
            found.append(p)
            m //= p
    return found


def _flat_transform(window: Array, power: int, odd: tuple[int, ...]) -> None:
    """Apply K to ``window``, float32 (m, n), in place; the Walsh-Hadamard part without its 1/sqrt(power)."""
    walsh_hadamard(window, power)
    inner = power
    for p in odd:
        view = window.reshape(-1, p, inner * window.shape[1])
        parts = [view[:, k] for k in range(p)]
        mixed = [_weighted_sum(row, parts) for row in _hartley(p)]
        view[...] = namespace(window).stack(mixed, 1)
        inner *= p


def _weighted_sum(weights: tuple[float, ...], parts: list[Array]) -> Array:
    """Return Σ weight · part from first to last.

    Spelled out term by term: a matrix product would round differently in NumPy and in Torch.
    """
    total = weights[0] * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total += weight * part
    return total


@lru_cache(maxsize=len(_ODD_FACTORS))
def _hartley(p: int) -> tuple[tuple[float, ...], ...]:
    """Return the p-point Hartley matrix, every entry rounded to float32."""
    angle = 2 * np.pi * np.outer(np.arange(p), np.arange(p)) / p
    matrix: Any = ((np.cos(angle) + np.sin(angle)) / np.sqrt(p)).astype(np.float32)
    return tuple(tuple(float(entry) for entry in row) for row in matrix)
