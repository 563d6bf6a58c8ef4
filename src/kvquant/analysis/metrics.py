"""The error measures, each a pure function of exact and approximate arrays (formulas in docs/analysis.md).

A measure that is not finite, because a cache type overflowed, is None: an unknown number is never 0.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kvquant.analysis.attention import RealArray
from kvquant.analysis.statistics import Float64Array


def finite(value: float) -> float | None:
    """Return ``value`` as a float, or None when it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


def mse(exact: RealArray, approximate: RealArray) -> float | None:
    """Mean of (x − x̂)² over all values."""
    return finite(float(np.mean(np.square(np.subtract(exact, approximate, dtype=np.float64)))))


def nmse(exact: RealArray, approximate: RealArray) -> float | None:
    """Σ(x − x̂)² / Σx²; 0 when both are 0, None when only the denominator is."""
    energy = float(np.sum(np.square(exact, dtype=np.float64)))
    error = float(np.sum(np.square(np.subtract(exact, approximate, dtype=np.float64))))
    if error == 0:
        return 0.0
    return finite(error / energy) if energy > 0 else None


def decibel(ratio: float | None) -> float | None:
    """10·log10 of a ratio of energies; None for an unknown ratio and for 0, which has no decibel value."""
    return None if ratio is None or ratio == 0 else 10 * math.log10(ratio)


def relative_error(exact: Float64Array, approximate: Float64Array) -> float | None:
    """sqrt(Σ‖o − õ‖² / Σ‖o‖²) over all queries and heads: nmse's square root."""
    ratio = nmse(exact, approximate)
    return None if ratio is None else math.sqrt(ratio)


def logit_rmse(
    exact: Float64Array, approximate: Float64Array, visible: npt.NDArray[np.bool_]
) -> float | None:
    """Root mean square, over visible (query, token) pairs, of the logit error less its mean for that query.

    Logits (n_head_kv, group, n_query, n_tokens). The mean is taken out because softmax ignores it.
    """
    n_visible = visible.sum(axis=-1, keepdims=True)
    error = np.where(visible, approximate - exact, 0.0)
    error = np.where(visible, error - error.sum(axis=-1, keepdims=True) / n_visible, 0.0)
    n_pairs = int(n_visible.sum()) * (error.shape[0] * error.shape[1])
    return finite(math.sqrt(float(np.sum(np.square(error))) / n_pairs))


def kl_divergence(log_exact: Float64Array, log_approximate: Float64Array) -> float | None:
    """Mean over queries and heads of Σ p·ln(p / p̃) in nats, from log probabilities (..., n_tokens).

    Summed as p·ln(p/p̃) − p + p̃, which has the same total and no negative term, so rounding cannot go below 0.
    """
    seen = log_exact > -np.inf
    difference = np.where(seen, log_exact, 0.0) - np.where(seen, log_approximate, 0.0)
    p = np.exp(log_exact)
    terms = p * difference - p + np.where(seen, np.exp(log_approximate), 0.0)
    return finite(float(np.mean(np.sum(np.maximum(terms, 0.0), axis=-1))))
