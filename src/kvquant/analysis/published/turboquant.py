"""Figures of the TurboQuant paper (arXiv 2504.19874) and of a public fork's 4-bit table."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kvquant.analysis.published.figure import (
    Figure,
    Float64Array,
    Reading,
    mean_reading,
    round_trip_errors,
    squared_errors,
    unit_vectors,
)
from kvquant.formats.base import Float32Array
from kvquant.formats.turboquant.codebook import lloyd_max
from kvquant.formats.turboquant.mse import TurboQuantMSE
from kvquant.formats.turboquant.outliers import OutlierSplit
from kvquant.formats.turboquant.prod import TurboQuantProd

PAPER = "TurboQuant paper"
FORK = "a public fork"
WIDTH = 1024
"""Wide enough for the paper's figures, which are those of the Gaussian limit."""

HEAD_DIM = 128
N_VECTORS = 1500

MSE = {1: "0.36", 2: "0.117", 3: "0.03", 4: "0.009"}
PROD = {2: "0.56", 3: "0.18", 4: "0.047"}
"""The paper's D_prod · d. It has one for one bit, 1.57: π/2, of the sketch alone, which is no format here."""

# The positive half of the 4-bit table for coordinates of variance 1/128 that several llama.cpp forks share.
FORK_CENTROIDS = (0.006938, 0.020989, 0.035597, 0.051262, 0.068756, 0.089527, 0.117195, 0.173926)


def figures(seed: int) -> tuple[Figure, ...]:
    """Return the paper's distortions, its 2.5-bit set-up, and what the fork's table does."""
    x = unit_vectors(N_VECTORS, WIDTH, seed)
    return (
        *(_mse(x, bits, published) for bits, published in MSE.items()),
        *(_prod(x, bits, published) for bits, published in PROD.items()),
        _fractional_bits(),
        *_fork(seed),
    )


def _mse(x: Float32Array, bits: int, published: str) -> Figure:
    exact = lloyd_max(WIDTH, bits).distortion
    at_head = lloyd_max(HEAD_DIM, bits).distortion
    errors = round_trip_errors(x, TurboQuantMSE(bits, norm_type="f32"))
    return Figure(
        key=f"paper.d_mse.{bits}b",
        source=PAPER,
        claim=f"E‖x - x̃‖² of unit vectors, mse, b = {bits}",
        published=published,
        convention=Reading(exact, f"exact at d = {WIDTH}"),
        actual=mean_reading(errors, f"{len(x)} unit vectors of {WIDTH}"),
        note=f"exactly {exact:.5f}; at d = {HEAD_DIM} {at_head:.5f}",
    )


def _prod(x: Float32Array, bits: int, published: str) -> Figure:
    # Over uniform unit y, d · E⟨y, x - x̃⟩² is E‖x - x̃‖².
    errors = round_trip_errors(x, TurboQuantProd(bits, norm_type="f32"))
    printed = MSE[bits - 1]
    exact = (math.pi / 2 - 1 / WIDTH) * lloyd_max(WIDTH, bits - 1).distortion
    return Figure(
        key=f"paper.d_prod.{bits}b",
        source=PAPER,
        claim=f"d · E⟨y, x - x̃⟩² of unit vectors, prod, b = {bits}",
        published=published,
        convention=Reading(
            math.pi / 2 * float(printed), f"π/2 times the printed {printed} of mse at {bits - 1} bits"
        ),
        actual=mean_reading(errors, f"{len(x)} unit vectors of {WIDTH}"),
        note=f"exactly {exact:.5f}",
    )


def _fractional_bits() -> Figure:
    rest, n_outliers = TurboQuantMSE(2), 32
    row = OutlierSplit(rest, tuple(range(n_outliers)))
    lengths = 2 * 16 / HEAD_DIM
    codes = row.bits_per_value(HEAD_DIM) - lengths
    return Figure(
        key="paper.fractional_bits",
        source=PAPER,
        claim="bits per value of 32 channels at 3 bits and 96 at 2: (32·3 + 96·2)/128",
        published="2.5",
        convention=Reading((32 * 3 + 96 * 2) / 128, "the sum as it is written"),
        actual=Reading(codes, f"code bytes of a packed row of {HEAD_DIM}"),
        note=f"the parts' fp16 lengths add {lengths:g}; codes of 2.5 take {HEAD_DIM // 2} channels at 3 bits",
    )


def _fork(seed: int) -> tuple[Figure, Figure]:
    magnitudes = np.array(FORK_CENTROIDS)
    centroids = np.concatenate((-magnitudes[::-1], magnitudes))
    # A rotated uniform unit vector is a uniform unit vector, so the table can be applied as it stands.
    x = unit_vectors(4 * N_VECTORS, HEAD_DIM, seed)
    measured = mean_reading(squared_errors(x, nearest(x, centroids)), f"{len(x)} unit vectors of {HEAD_DIM}")
    gaussian = Reading(
        _gaussian_distortion(magnitudes * math.sqrt(HEAD_DIM)), "Gaussian coordinates, in closed form"
    )
    optimal = lloyd_max(HEAD_DIM, 4).distortion
    return (
        Figure(
            key="fork.d_mse.4b",
            source=FORK,
            claim="E‖x - x̃‖² with its 4-bit table",
            published="0.0203",
            convention=gaussian,
            actual=measured,
        ),
        Figure(
            key="fork.optimal.4b",
            source=FORK,
            claim="its 4-bit table is the Lloyd-Max quantizer, so E‖x - x̃‖² is",
            published="0.0095",
            convention=gaussian,
            actual=measured,
            note=f"the Lloyd-Max quantizer at d = {HEAD_DIM} has {optimal:.5f}",
        ),
    )


def nearest(x: Float32Array, centroids: Float64Array) -> npt.NDArray[np.float64]:
    """Return ``x`` with every value replaced by the nearest of the ascending ``centroids``."""
    return np.asarray(centroids[np.searchsorted((centroids[1:] + centroids[:-1]) / 2, x)])


def _gaussian_distortion(magnitudes: Float64Array) -> float:
    """Return E(z - c(z))² for z ~ N(0, 1) and the nearest of ±``magnitudes``."""
    from scipy.special import ndtr

    edges = np.concatenate(([0.0], (magnitudes[1:] + magnitudes[:-1]) / 2, [np.inf]))
    density = np.exp(-np.square(edges) / 2) / math.sqrt(2 * math.pi)
    mass, moment = np.diff(ndtr(edges)), -np.diff(density)
    # Half of the second moment of z lies above zero; the cross terms follow from each cell's mass and first
    # moment.
    return 2 * float(0.5 - 2 * np.sum(magnitudes * moment) + np.sum(magnitudes**2 * mass))
