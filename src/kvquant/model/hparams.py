"""The part of llama.cpp's `llama_hparams` that decides how large the memory of a model is.

`Keys` reads one architecture's header keys with the types llama.cpp insists on; `common_hparams` is
llama_model_base::load_hparams (src/llama-model.cpp at the pin) cut down to what matters here. The rules in
`kvquant.model.architectures` then replace fields, as load_arch_hparams does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

from kvquant.errors import ModelFileError
from kvquant.model.gguf_header import Array, GgufHeader, Scalar
from kvquant.model.gguf_types import ValueType
from kvquant.model.shape import MAX_LAYERS, RecurrentState, WindowKind

T = TypeVar("T")

_INTEGER_ITEMS = (ValueType.BOOL, ValueType.UINT32, ValueType.INT32)
"""What llama_model_loader::get_arr accepts for an array of integers."""


class Keys:
    """Typed access to the keys of one header; ``block_count`` means ``<architecture>.block_count``."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        entry = header.values.get("general.architecture")
        self.arch = str(entry.value) if isinstance(entry, Scalar) else ""

    def fail(self, problem: str) -> NoReturn:
        """Raise ModelFileError about this file."""
        raise ModelFileError(f"{self._header.shown} ({printable(self.arch)}): {problem}")

    def _find(self, key: str) -> Scalar | Array | None:
        return self._header.values.get(f"{self.arch}.{key}")

    def has(self, key: str) -> bool:
        """Whether ``key`` is there."""
        return self._find(key) is not None

    def has_array(self, key: str) -> bool:
        """Whether ``key`` is there and is an array."""
        return isinstance(self._find(key), Array)

    def u32(self, key: str, default: int | None = None) -> int:
        """A uint32, required unless there is a default."""
        entry = self._find(key)
        if entry is None:
            if default is None:
                self.fail(f"the key {key} is missing; convert the model again")
            return default
        if not isinstance(entry, Scalar) or entry.type is not ValueType.UINT32:
            self.fail(f"{key} is {_described(entry)}; llama.cpp takes a uint32")
        return int(entry.value or 0)

    def array(self, key: str) -> tuple[int, ...]:
        """An array of integers of any length, required."""
        entry = self._find(key)
        if not isinstance(entry, Array) or entry.type not in _INTEGER_ITEMS:
            self.fail(f"{key} is {_described(entry)}; llama.cpp takes an array of integers")
        if entry.items is None or entry.n > MAX_LAYERS:
            self.fail(f"{key} has {entry.n} items; llama.cpp takes at most {MAX_LAYERS}")
        items = tuple(int(item) for item in entry.items)
        if any(item < 0 for item in items):
            self.fail(f"{key} has the negative item {min(items)}")
        return items

    def per_layer(self, key: str, n_layer: int, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """One integer per layer, given as one uint32 for all or as an array of ``n_layer``."""
        if self.has_array(key):
            items = self.array(key)
            if len(items) != n_layer:
                self.fail(f"{key} has {len(items)} items for {n_layer} layers")
            return items
        if default is not None and not self.has(key):
            return tuple(default)
        return (self.u32(key),) * n_layer


@dataclass(frozen=True)
class Hparams:
    """Fields keep llama.cpp's meaning; per-layer tuples have ``n_layer_all`` items.

    n_nextn: nextn (MTP) layers at the end. window: n_swa. windowed: is_swa.
    head_dim_k, head_dim_v: of full-attention layers; the pair ending in _window: of sliding-window layers.
    n_layer_kv: the layers from this one on read another layer's cache; None when none does.
    cached, stateful: the layers llama_model::create_memory gives K/V cells and a recurrent state.
    empty_layers: whether layers without KV heads are among those with cells.
    """

    arch: str
    n_ctx_train: int
    n_embd: int
    n_layer_all: int
    n_nextn: int
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    n_ff: tuple[int, ...]
    head_dim_k: int
    head_dim_v: int
    head_dim_k_window: int
    head_dim_v_window: int
    windowed: tuple[bool, ...]
    cached: tuple[bool, ...]
    stateful: tuple[bool, ...]
    window: int = 0
    window_kind: WindowKind = WindowKind.NONE
    n_layer_kv: int | None = None
    mla: bool = False
    empty_layers: bool = False
    state: RecurrentState | None = None

    @property
    def n_layer(self) -> int:
        """Layers of the trunk, llama_hparams::n_layer()."""
        return self.n_layer_all - self.n_nextn

    def with_layers(self, source: Sequence[int]) -> Hparams:
        """The model whose layer i is a copy of layer ``source[i]`` here, none of them a nextn layer."""

        def copied(items: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(items[il] for il in source)

        return replace(
            self,
            n_layer_all=len(source),
            n_nextn=0,
            n_head=copied(self.n_head),
            n_head_kv=copied(self.n_head_kv),
            n_ff=copied(self.n_ff),
            windowed=copied(self.windowed),
            cached=copied(self.cached),
            stateful=copied(self.stateful),
        )


Rule = Callable[[Keys, Hparams], Hparams]
"""From the common hparams to the architecture's own, reading further keys: llama.cpp's load_arch_hparams."""


def common_hparams(keys: Keys) -> Hparams:
    """Read what every architecture has. Raises ModelFileError for what llama.cpp would not load either."""
    n_layer_all = keys.u32("block_count")
    if not 1 <= n_layer_all <= MAX_LAYERS:
        keys.fail(f"block_count is {n_layer_all}; llama.cpp takes 1 to {MAX_LAYERS}")
    n_nextn = keys.u32("nextn_predict_layers", 0)
    if n_nextn >= n_layer_all:
        keys.fail(f"all {n_layer_all} layers are nextn layers; give the model that this is a draft for")
    n_embd = keys.u32("embedding_length")
    n_ctx_train = keys.u32("context_length")
    zeros = (0,) * n_layer_all
    n_head = keys.per_layer("attention.head_count", n_layer_all, zeros)
    n_head_kv = keys.per_layer("attention.head_count_kv", n_layer_all, n_head)
    # Without heads in layer 0 llama.cpp takes the model for one without attention, and ignores the lengths.
    even = n_embd // n_head[0] if n_head[0] else 0
    head_dim_k = keys.u32("attention.key_length", even) if n_head[0] else 0
    head_dim_v = keys.u32("attention.value_length", even) if n_head[0] else 0
    trunk = tuple(il < n_layer_all - n_nextn for il in range(n_layer_all))
    return Hparams(
        arch=keys.arch,
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_layer_all=n_layer_all,
        n_nextn=n_nextn,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_ff=keys.per_layer("feed_forward_length", n_layer_all, zeros),
        head_dim_k=head_dim_k,
        head_dim_v=head_dim_v,
        head_dim_k_window=keys.u32("attention.key_length_swa", head_dim_k),
        head_dim_v_window=keys.u32("attention.value_length_swa", head_dim_v),
        windowed=(False,) * n_layer_all,
        cached=trunk,
        stateful=(False,) * n_layer_all,
    )


_UNSCALED = ("gemma3n", "gemma4")
"""Architectures that normalise q and k and use 1; src/models/gemma3n.cpp, gemma4.cpp at the pin."""

_SCALED_BY_EMBEDDING = {"gemma2": 46, "gemma3": 62}
"""Architecture to the layers of its 27B, which scales by the embedding per head; gemma2.cpp, gemma3.cpp."""


def logit_scale(header: GgufHeader, head_dim_k: int) -> float:
    """Return what a layer whose K heads hold ``head_dim_k`` values multiplies q·k by before the softmax.

    1/sqrt(head_dim_k) unless the header or the architecture says otherwise. Not for multi-head latent
    attention, whose scale depends on its RoPE scaling.
    """
    keys = Keys(header)
    if keys.arch in _UNSCALED:
        return 1.0
    given = header.values.get(f"{keys.arch}.attention.scale")
    if isinstance(given, Scalar) and isinstance(given.value, float) and given.value > 0:
        return given.value
    if keys.arch in _SCALED_BY_EMBEDDING and keys.u32("block_count") == _SCALED_BY_EMBEDDING[keys.arch]:
        return 1.0 / math.sqrt(keys.u32("embedding_length") / keys.u32("attention.head_count"))
    return 1.0 / math.sqrt(head_dim_k)


def _described(entry: Scalar | Array | None) -> str:
    if entry is None:
        return "missing"
    name = entry.type.name.lower()
    return f"an array of {entry.n} {name}" if isinstance(entry, Array) else f"a {name}"


def printable(text: str) -> str:
    """A name from the file as it may be shown: one line, at most 60 characters."""
    return text if text.isprintable() and len(text) <= 60 else repr(text[:60])
