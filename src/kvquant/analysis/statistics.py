"""The statistics of K and V that decide how well they quantize: what profiles claim and tests measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvquant.formats.base import Float32Array

Float64Array = npt.NDArray[np.float64]

OUTLIER_RATIO = 3.0
"""A channel is an outlier when its RMS is more than this many times the median channel RMS of its head."""


def channel_rms(x: Float32Array) -> Float64Array:
    """Return the root mean square over tokens of each channel: (n_tokens, ..., width) to (..., width)."""
    return np.asarray(np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=0)))


def outlier_fraction(x: Float32Array) -> float:
    """Return the share of channels of (n_tokens, n_head, width) that are outliers within their head."""
    rms = channel_rms(x)
    return float(np.mean(rms > OUTLIER_RATIO * np.median(rms, axis=-1, keepdims=True)))


def mean_norm(x: Float32Array) -> float:
    """Return the mean Euclidean norm of the vectors along the last axis."""
    return float(np.mean(np.linalg.norm(x.astype(np.float64), axis=-1)))


def token_norm_spread(x: Float32Array) -> float:
    """Return how far token norms lie apart: 99th over 1st percentile in a head, averaged over heads."""
    norms = np.linalg.norm(x.astype(np.float64), axis=-1)
    low, high = np.percentile(norms, (1, 99), axis=0)
    return float(np.mean(high / low))


def kurtosis(x: npt.NDArray[np.floating[Any]]) -> float:
    """Return E[x⁴] / E[x²]² over all values: 3 for a Gaussian, larger when few values carry the energy."""
    squared = np.square(x, dtype=np.float64)
    return float(np.mean(squared**2) / np.mean(squared) ** 2)


def offset_share(x: Float32Array) -> float:
    """Return the share of the energy of (n_tokens, n_head, width) held by each channel's mean over tokens."""
    mean = np.mean(x, axis=0, dtype=np.float64)
    return float(np.sum(mean**2) / (np.sum(np.square(x, dtype=np.float64)) / len(x)))
