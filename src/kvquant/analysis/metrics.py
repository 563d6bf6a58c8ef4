"""Attention and error measures, each a pure function of exact and approximate arrays (docs/analysis.md), and
the statistics of K and V that decide how well they quantize: what profiles claim and tests measure.

A measure that is not finite, because a cache type overflowed, is None: an unknown number is never 0.

Attention is causal, with grouped queries, in float64. Left out on purpose: ALiBi, logit soft-capping and
learned sink logits. They change the attention of the few models that use them; the comparison between two
caches of one model stays meaningful.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kvquant.formats.base import Float32Array

RealArray = npt.NDArray[np.floating[Any]]
Float64Array = npt.NDArray[np.float64]

OUTLIER_RATIO = 3.0
"""A channel is an outlier when its RMS is more than this many times the median channel RMS of its head."""


def attention_logits(q: RealArray, k: RealArray, scale: float) -> Float64Array:
    """Return scale · q·k as float64 (n_head_kv, group, n_query, n_tokens).

    q (n_query, n_head, head_dim), k (n_tokens, n_head_kv, head_dim); query head h reads KV head h // group.
    """
    n_query, n_head, width = q.shape
    n_head_kv = k.shape[1]
    queries = (
        q.astype(np.float64).reshape(n_query, n_head_kv, n_head // n_head_kv, width).transpose(1, 2, 0, 3)
    )
    keys = k.astype(np.float64).transpose(1, 2, 0)[:, None]
    return np.asarray(queries @ keys * scale)


def log_softmax(logits: Float64Array, visible: npt.NDArray[np.bool_]) -> Float64Array:
    """Return log probabilities over the last axis, -inf where ``visible`` (n_query, n_tokens) is False."""
    masked = np.where(visible, logits, -np.inf)
    shifted = masked - masked.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True)))


def attend(probabilities: Float64Array, v: RealArray) -> Float64Array:
    """Return the attention output, float64 (n_head_kv, group, n_query, head_dim_v).

    probabilities (n_head_kv, group, n_query, n_tokens), v (n_tokens, n_head_kv, head_dim_v).
    """
    return np.asarray(probabilities @ v.astype(np.float64).transpose(1, 0, 2)[:, None])


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
