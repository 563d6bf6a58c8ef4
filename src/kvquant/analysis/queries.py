"""Synthetic queries for keys that come without any, scaled so that attention is as peaked as in real models.

A query head is a fixed direction plus fresh noise for every query. The fixed part makes some tokens matter to
all queries ("heavy hitters"), as trained heads do. Channels where K is large get small queries (RMS to the
power -1/2): only the product reaches attention, so training has no reason to put all the size on one side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvquant.analysis.statistics import channel_rms
from kvquant.formats.base import Float32Array

LOGIT_STD = 2.0
"""Standard deviation, over the tokens after the first, of the logits of one query: logit_scale · q·k."""

FIXED_SHARE = 0.5
"""Share of a query's energy that is the same for all queries of its head."""


def synthetic_queries(
    k: Float32Array, n_query: int, group: int, rng: np.random.Generator, logit_scale: float
) -> Float32Array:
    """Return queries for the keys of one KV head, float32 (n_tokens, head_dim).

    The result is float32 (n_query, group, head_dim). Each query head is scaled so that the variance of its
    logits over tokens 1.. is LOGIT_STD² on average.
    """
    width = k.shape[1]
    rms = channel_rms(k)
    weight = 1 / np.sqrt(np.maximum(rms, 1e-3 * rms.max() + np.finfo(np.float64).tiny))
    fixed = rng.standard_normal((1, group, width))
    fresh = rng.standard_normal((n_query, group, width))
    q = weight * (np.sqrt(FIXED_SHARE) * fixed + np.sqrt(1 - FIXED_SHARE) * fresh)
    logits = q @ k[1:].astype(np.float64).T * logit_scale
    # One token has no spread to scale to.
    std = np.sqrt(np.mean(np.var(logits, axis=-1), axis=0)) if len(k) > 1 else np.zeros(group)
    scale = np.where(std > 0, LOGIT_STD / np.where(std > 0, std, 1.0), 1.0)
    return np.asarray(q * scale[:, None], dtype=np.float32)


def query_positions(n_tokens: int, n_query: int) -> npt.NDArray[np.int64]:
    """Return up to ``n_query`` distinct positions, ascending, spread over the second half of ``n_tokens``.

    The first half is left out because queries there see few tokens, which makes every cache look better.
    """
    first = n_tokens // 2
    return np.unique(np.linspace(first, n_tokens - 1, min(n_query, n_tokens - first)).astype(np.int64))
