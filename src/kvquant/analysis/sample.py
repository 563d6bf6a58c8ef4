"""What every analysis works on: the keys, values and queries of one layer, and where they come from.

Keys that come without queries get synthetic ones, scaled so that attention is as peaked as in real models. A
query head is a fixed direction plus fresh noise for every query. The fixed part makes some tokens matter to
all queries ("heavy hitters"), as trained heads do. Channels where K is large get small queries (RMS to the
power -1/2): only the product reaches attention, so training has no reason to put all the size on one side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from kvquant.analysis.metrics import channel_rms
from kvquant.errors import CaptureError
from kvquant.formats.base import Float32Array

if TYPE_CHECKING:
    from kvquant.model.shape import ModelShape

PositionArray = npt.NDArray[np.int64]

LOGIT_STD = 2.0
"""Standard deviation, over the tokens after the first, of the logits of one query: logit_scale · q·k."""

FIXED_SHARE = 0.5
"""Share of a query's energy that is the same for all queries of its head."""


@dataclass(frozen=True, eq=False)
class LayerSample:
    """K, V and Q of one layer, as attention sees them: after RoPE, before any cache rotation.

    k: float32 (n_tokens, n_head_kv, head_dim_k).
    v: float32 (n_tokens, n_head_kv, head_dim_v).
    q: float32 (n_query, n_head, head_dim_k); query head h reads KV head h // (n_head / n_head_kv).
    positions: int64 (n_tokens,), the position of each token in its sequence.
    query_positions: int64 (n_query,); a query sees the tokens at its position and before.
    logit_scale: what q·k is multiplied by before the softmax, 1/sqrt(head_dim_k) in most models.
    window: tokens a query sees at most, 0 for all (sliding-window attention).
    heads: which KV heads of the layer these are; None for all.

    Raises CaptureError when the axes do not fit together, a value is not finite, or a query sees no token.
    """

    k: Float32Array
    v: Float32Array
    q: Float32Array
    positions: PositionArray
    query_positions: PositionArray
    logit_scale: float
    window: int = 0
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, array in (("k", self.k), ("v", self.v), ("q", self.q)):
            if array.ndim != 3 or 0 in array.shape:
                raise CaptureError(
                    f"{name} has shape {array.shape}; it needs three axes (tokens, heads, head dim)"
                )
            if not np.isfinite(array).all():
                raise CaptureError(f"{name} holds NaN or infinite values; capture it again")
        if self.k.shape[:2] != self.v.shape[:2]:
            raise CaptureError(f"k {self.k.shape} and v {self.v.shape} differ in tokens or KV heads")
        if self.q.shape[2] != self.k.shape[2] or self.q.shape[1] % self.k.shape[1]:
            raise CaptureError(
                f"q {self.q.shape} does not fit k {self.k.shape}: head dims must agree, and the query heads "
                "must be a multiple of the KV heads"
            )
        if self.positions.shape != self.k.shape[:1] or self.query_positions.shape != self.q.shape[:1]:
            raise CaptureError(
                f"{self.positions.size} positions for {self.k.shape[0]} tokens, {self.query_positions.size} "
                f"for {self.q.shape[0]} queries; give one position each"
            )
        if not self.visible.any(axis=1).all():
            raise CaptureError("a query sees no token: query positions must not be before the first token")

    @property
    def visible(self) -> npt.NDArray[np.bool_]:
        """Which tokens each query may read, bool (n_query, n_tokens): causal, and within the window."""
        distance = self.query_positions[:, None] - self.positions[None, :]
        return (distance >= 0) & ((self.window == 0) | (distance < self.window))


@dataclass(frozen=True)
class SourceInfo:
    """Where the data of an analysis came from, and how much of it was looked at.

    kind: "profile" (synthetic) or "capture". name: the profile's name or the capture's file name.
    description: for people. queries: "synthetic" or "captured". seed: None where nothing was drawn.
    n_tokens, n_query: per layer. n_head_kv, n_head: heads looked at per layer, as "2 of 8".
    """

    kind: str
    name: str
    description: str
    queries: str
    seed: int | None
    n_tokens: int
    n_query: int
    n_head_kv: str
    n_head: str


class Source(Protocol):
    """Something that can give each layer of a model its keys, values and queries."""

    @property
    def shape(self) -> ModelShape:
        """The model the layers belong to."""

    @property
    def info(self) -> SourceInfo:
        """Where the data come from and how much is sampled."""

    def layer(self, layer: int) -> LayerSample:
        """Return the sample of the layer with global index ``layer``, the same at every call."""


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
