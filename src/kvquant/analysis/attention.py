"""Reference attention in float64: causal, with grouped queries.

Left out on purpose: ALiBi, logit soft-capping and learned sink logits. They change the attention of the few
models that use them; the comparison between two caches of one model stays meaningful.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvquant.analysis.statistics import Float64Array

RealArray = npt.NDArray[np.floating[Any]]


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
