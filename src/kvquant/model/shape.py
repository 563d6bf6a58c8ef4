"""What a model's KV cache looks like: layers, heads, widths, windows, and which layers keep a cache.

The rules that turn a GGUF header into these values are in `kvquant.model.architectures`; how many cells
llama.cpp allocates for them is in `kvquant.memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import pairwise

from kvquant.errors import ShapeError

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS, src/llama-hparams.h at the pin."""

MAX_WIDTH = 2**24
"""Largest head count, head dim or window accepted; two orders of magnitude above any published model."""


class WindowKind(Enum):
    """How sliding-window layers mask, `llama_swa_type` in src/llama-hparams.h. Both cost the same memory."""

    NONE = "none"
    SLIDING = "sliding"
    """A token sees the ``window`` tokens up to and including itself."""
    CHUNKED = "chunked"
    """A token sees the tokens of its own chunk of ``window`` tokens, up to and including itself."""


@dataclass(frozen=True)
class LayerShape:
    """One layer of a model.

    n_head: query heads. n_head_kv: KV heads, 0 in a layer without attention; should it count among the layers
        with a cache all the same (deci), its cache has no bytes.
    head_dim_k, head_dim_v: values per KV head in K and in V.
    keeps_cache: whether the layer has K/V cells of its own. False for recurrent layers, for layers that read
        another layer's cache, and nearly always for nextn (MTP) layers, which serve a draft context only.
    shares_with: the layer whose cache this one reads, None for its own or none.
    window: tokens the layer attends to, itself included; 0 for all.
    stores_v: False under multi-head latent attention, where V is a view of K.
    recurrent: whether the layer keeps a recurrent state (`ModelShape.state`).
    nextn: whether this is a nextn (MTP) layer.
    """

    n_head: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    keeps_cache: bool = True
    shares_with: int | None = None
    window: int = 0
    stores_v: bool = True
    recurrent: bool = False
    nextn: bool = False

    def __post_init__(self) -> None:
        for name in ("n_head", "n_head_kv", "head_dim_k", "head_dim_v", "window"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_WIDTH:
                raise ShapeError(f"{name} is {value}; it must be from 0 to {MAX_WIDTH}")
        if self.keeps_cache and not (self.head_dim_k and self.head_dim_v):
            raise ShapeError(
                f"a layer with a cache has head_dim_k {self.head_dim_k} and head_dim_v {self.head_dim_v}; "
                "both must be positive"
            )
        if self.keeps_cache and self.shares_with is not None:
            raise ShapeError("a layer that shares a cache cannot keep one of its own")

    @property
    def n_embd_k(self) -> int:
        """Values in one token's K row; what a cache type packs."""
        return self.n_head_kv * self.head_dim_k

    @property
    def n_embd_v(self) -> int:
        """Values in one token's V row; 0 where V is not stored."""
        return self.n_head_kv * self.head_dim_v if self.stores_v else 0


@dataclass(frozen=True)
class RecurrentState:
    """What one recurrent layer keeps for one sequence, in float32 values.

    llama_hparams::n_embd_r and ::n_embd_s, src/llama-hparams.cpp at the pin.
    """

    n_conv: int
    n_state: int

    def __post_init__(self) -> None:
        for name, value in (("n_conv", self.n_conv), ("n_state", self.n_state)):
            if not 0 <= value < 2**32:
                raise ShapeError(f"recurrent state: {name} is {value}; it must be from 0 to 2^32-1")


@dataclass(frozen=True)
class ModelShape:
    """A model as its KV cache sees it.

    name: for people. arch: `general.architecture` of a GGUF, or a free word in a shape given by hand.
    n_ctx_train: tokens of context the model was trained on, 0 when unknown.
    window_kind: how its sliding-window layers mask. Every layer with a window lives in the second, smaller
        cache; llama.cpp allows one window per model.
    state: what each recurrent layer keeps, None when there is none or when it is not known.
    source: where the numbers come from.
    """

    name: str
    arch: str
    n_ctx_train: int
    layers: tuple[LayerShape, ...]
    window_kind: WindowKind = WindowKind.NONE
    state: RecurrentState | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise ShapeError(f"{self.name}: {len(self.layers)} layers; llama.cpp takes 1 to {MAX_LAYERS}")
        if not 0 <= self.n_ctx_train < 2**32:
            raise ShapeError(f"{self.name}: n_ctx_train is {self.n_ctx_train}; it must be from 0 to 2^32-1")
        windows = sorted({layer.window for layer in self.layers if layer.window})
        if len(windows) > 1:
            raise ShapeError(f"{self.name}: windows {windows}; llama.cpp allows one window per model")
        if bool(windows) is (self.window_kind is WindowKind.NONE):
            raise ShapeError(
                f"{self.name}: window_kind is {self.window_kind.value!r} but "
                f"{'layers have a window' if windows else 'no layer has a window'}"
            )
        for index, layer in enumerate(self.layers):
            self._check_shared(index, layer)

    def _check_shared(self, index: int, layer: LayerShape) -> None:
        source = layer.shares_with
        if source is None:
            return
        if not 0 <= source < len(self.layers) or not self.layers[source].keeps_cache:
            raise ShapeError(f"{self.name}: layer {index} shares with layer {source}, which keeps no cache")
        if self.layers[source].window != layer.window:
            raise ShapeError(f"{self.name}: layer {index} shares with layer {source}, whose window differs")

    @property
    def n_layer(self) -> int:
        """All layers, recurrent, sharing and nextn ones included; policies count these."""
        return len(self.layers)

    @cached_property
    def kv_layers(self) -> tuple[int, ...]:
        """Global indices of the layers that own a cache, in order; a kv_index is a position here."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.keeps_cache)

    @cached_property
    def filled_kv_indices(self) -> tuple[int, ...]:
        """kv indices of the layers that write rows; a pruned layer may own a cache and have no KV head."""
        return tuple(i for i, layer in enumerate(self.kv_layers) if self.layers[layer].n_head_kv)

    @property
    def window(self) -> int:
        """Tokens a sliding-window layer attends to, 0 when the model has none."""
        return max(layer.window for layer in self.layers)

    @property
    def mla(self) -> bool:
        """Whether the caches hold latent K rows and no V (multi-head latent attention)."""
        return any(layer.keeps_cache and not layer.stores_v for layer in self.layers)

    @property
    def n_recurrent(self) -> int:
        """Layers that keep a recurrent state."""
        return sum(layer.recurrent for layer in self.layers)


def runs(layers: Sequence[LayerShape]) -> list[tuple[int, LayerShape]]:
    """Return (count, layer) for each run of equal neighbours, for compact display and JSON."""
    starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(layers)) if a != b), len(layers)]
    return [(stop - start, layers[start]) for start, stop in pairwise(starts)]
