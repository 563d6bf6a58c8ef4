"""What a fit needs of K and Q: their first and second moments, per KV head, in float64.

Moments add up, so that chunks of a text, texts, and machines can be measured apart and put together; no
activation has to be kept. K and Q are those that attention multiplies: after RoPE, before any rotation. Each
key and query may count by a weight of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvquant.errors import TransformError

Float64Array = npt.NDArray[np.float64]
RealArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class HeadMoments:
    """Sums over the tokens of one KV head, and over the queries of all heads that read it.

    key_weight, query_weight: Σw over the keys and over the queries, their number where each counts as one.
    key_sum: Σ w k, float64 (head_dim,). key_square: Σ w kkᵀ and query_square: Σ w qqᵀ, float64 (head_dim,
    head_dim). A head on which nothing depends, as its values are all the same, has no weight. Raises
    TransformError when shapes do not fit, a weight is negative, or a number is not finite.
    """

    key_weight: float
    query_weight: float
    key_sum: Float64Array
    key_square: Float64Array
    query_square: Float64Array

    def __post_init__(self) -> None:
        width = self.key_sum.shape[-1] if self.key_sum.ndim == 1 else 0
        square = (width, width)
        if not width or self.key_square.shape != square or self.query_square.shape != square:
            raise TransformError(
                f"moments: sums of shape {self.key_sum.shape} do not go with squares of shapes "
                f"{self.key_square.shape} and {self.query_square.shape}"
            )
        if not (0 <= self.key_weight < math.inf and 0 <= self.query_weight < math.inf):
            raise TransformError(
                f"moments: weights of {self.key_weight} and {self.query_weight} are no weights; this model's "
                "attention overflows"
            )
        for name in ("key_sum", "key_square", "query_square"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if not np.isfinite(array).all():
                raise TransformError(f"moments: {name} holds NaN or infinity; this model's K or Q overflows")
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def width(self) -> int:
        """Values of one key."""
        return len(self.key_sum)

    @property
    def key_mean(self) -> Float64Array:
        """E[k], float64 (head_dim,)."""
        return self.key_sum / (self.key_weight or 1)

    def key_energy(self, centre: Float64Array) -> Float64Array:
        """Return P = E[(k − c)(k − c)ᵀ], float64 (head_dim, head_dim), symmetric."""
        cross = np.outer(centre, self.key_mean)
        return _symmetric(
            self.key_square / (self.key_weight or 1) - cross - cross.T + np.outer(centre, centre)
        )

    @property
    def query_energy(self) -> Float64Array:
        """Q = E[qqᵀ], float64 (head_dim, head_dim), symmetric."""
        return _symmetric(self.query_square / (self.query_weight or 1))

    def __add__(self, other: HeadMoments) -> HeadMoments:
        return HeadMoments(
            self.key_weight + other.key_weight,
            self.query_weight + other.query_weight,
            self.key_sum + other.key_sum,
            self.key_square + other.key_square,
            self.query_square + other.query_square,
        )


@dataclass(frozen=True)
class LayerMoments:
    """The moments of one layer, a `HeadMoments` per KV head."""

    layer: int
    heads: tuple[HeadMoments, ...]

    def __post_init__(self) -> None:
        if not self.heads or len({head.width for head in self.heads}) != 1:
            raise TransformError(f"moments of layer {self.layer}: heads of one width are needed")

    def __add__(self, other: LayerMoments) -> LayerMoments:
        if self.layer != other.layer or len(self.heads) != len(other.heads):
            raise TransformError(
                f"moments of layer {self.layer} ({len(self.heads)} KV heads) cannot be added to those of "
                f"layer {other.layer} ({len(other.heads)} KV heads)"
            )
        return LayerMoments(self.layer, tuple(a + b for a, b in zip(self.heads, other.heads, strict=True)))


def measure(layer: int, k: RealArray, q: RealArray) -> LayerMoments:
    """Return the moments of k (n_tokens, n_head_kv, head_dim) and q (n_query, n_head, head_dim).

    Query head h reads KV head h // (n_head / n_head_kv). Raises TransformError for shapes that do not fit.
    """
    if k.ndim != 3 or q.ndim != 3 or k.shape[2] != q.shape[2] or q.shape[1] % max(k.shape[1], 1):
        raise TransformError(
            f"moments of layer {layer}: K {k.shape} and Q {q.shape} are not (tokens, heads, head dim) of "
            f"one width"
        )
    if not len(k) or not len(q):
        raise TransformError("moments: nothing was measured; use a text of at least one token")
    keys = k.astype(np.float64).transpose(1, 0, 2)
    n_head_kv, n_key, width = keys.shape
    queries = q.astype(np.float64).transpose(1, 0, 2).reshape(n_head_kv, -1, width)
    return LayerMoments(
        layer,
        tuple(
            HeadMoments(n_key, queries.shape[1], key.sum(axis=0), key.T @ key, query.T @ query)
            for key, query in zip(keys, queries, strict=True)
        ),
    )


def _symmetric(square: Float64Array) -> Float64Array:
    return np.asarray((square + square.T) / 2)
