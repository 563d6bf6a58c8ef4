"""What the figures are measured on, and the measurement itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvquant.analysis.published.figure import Reading
from kvquant.formats.base import Float32Array, Format

Float64Array = npt.NDArray[np.float64]


def unit_vectors(n: int, width: int, seed: int) -> Float32Array:
    """Return ``n`` vectors uniform on the sphere, float32 (n, width)."""
    x = np.random.default_rng(seed).standard_normal((n, width))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


def squared_errors(x: Float32Array, restored: npt.NDArray[np.floating]) -> Float64Array:
    """Return ‖x - x̃‖² of every row, float64 (n,)."""
    difference = x.astype(np.float64) - restored
    return np.asarray(np.einsum("ij,ij->i", difference, difference))


def round_trip_errors(x: Float32Array, fmt: Format) -> Float64Array:
    """Return ‖x - x̃‖² of every row stored as ``fmt``."""
    return squared_errors(x, fmt.dequantize(fmt.quantize(x), x.shape[1]))


def mean_reading(errors: Float64Array, how: str, divisor: int = 1) -> Reading:
    """Return the mean of per-vector ``errors`` over ``divisor``, with its standard error."""
    standard_error = float(errors.std(ddof=1)) / len(errors) ** 0.5
    return Reading(float(errors.mean()) / divisor, how, standard_error / divisor)
