"""The bytes llama.cpp allocates for a model's KV cache, layer by layer.

Sources at the pin: the constructor of llama_kv_cache (src/llama-kv-cache.cpp) for K and V, that of
llama_memory_recurrent (src/llama-memory-recurrent.cpp) for recurrent states, llama_init_from_model
(src/llama-context.cpp) for what is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvquant.errors import FormatError, UsageError
from kvquant.formats.registry import CACHE_TYPES, get_format
from kvquant.formats.storage import NOT_QUANTIZED
from kvquant.memory.cells import DEFAULT_BATCH, DEFAULT_UBATCH, CacheCells, ContextOptions, cache_cells
from kvquant.memory.fit import check_types
from kvquant.model.shape import LayerShape, ModelShape
from kvquant.policy import ResolvedLayer, ResolvedPolicy

STATE_VALUE_BYTES = 4
"""Recurrent states are float32 whatever the cache types."""


@dataclass(frozen=True)
class LayerMemory:
    """One layer's share. n_cells: over all streams. k_bytes, v_bytes: v_bytes is 0 where V is not stored."""

    layer: int
    kv_index: int
    k_type: str
    v_type: str
    n_cells: int
    k_bytes: int
    v_bytes: int
    windowed: bool

    @property
    def n_bytes(self) -> int:
        return self.k_bytes + self.v_bytes


@dataclass(frozen=True)
class KVMemory:
    """What a model's context costs.

    cells: the sizes llama.cpp settles on. layers: those that keep a cache, in order. recurrent_bytes: the
    states of recurrent layers, 0 without any, None when the shape does not say how large they are.
    """

    cells: CacheCells
    layers: tuple[LayerMemory, ...]
    recurrent_bytes: int | None

    @property
    def kv_bytes(self) -> int:
        """K and V of all layers."""
        return sum(layer.n_bytes for layer in self.layers)

    @property
    def not_runnable(self) -> tuple[str, ...]:
        """The types in use that llama.cpp has no cache for, sorted: their bytes are computed only."""
        used = {name for layer in self.layers for name in (layer.k_type, layer.v_type)}
        return tuple(sorted(used - set(CACHE_TYPES)))

    @property
    def base_bytes(self) -> int:
        """K and V of the layers with full attention: llama.cpp's first KV buffer."""
        return sum(layer.n_bytes for layer in self.layers if not layer.windowed)

    @property
    def window_bytes(self) -> int:
        """K and V of the sliding-window layers: llama.cpp's second KV buffer."""
        return sum(layer.n_bytes for layer in self.layers if layer.windowed)


def kv_bytes(
    shape: ModelShape,
    policy: ResolvedPolicy,
    *,
    n_ctx: int,
    n_parallel: int = 1,
    kv_unified: bool = False,
    swa_full: bool = False,
    n_batch: int = DEFAULT_BATCH,
    n_ubatch: int = DEFAULT_UBATCH,
    flash_attn: bool = True,
) -> KVMemory:
    """Return what llama.cpp allocates for ``shape`` under ``policy`` (resolved against the same shape).

    The options are those of `ContextOptions`. Raises UsageError for options or type combinations llama.cpp
    refuses, FormatError for a head dim that a type's block does not divide.
    """
    options = ContextOptions(n_ctx, n_parallel, kv_unified, swa_full, n_batch, n_ubatch, flash_attn)
    return memory_of(shape, policy, options)


def memory_of(shape: ModelShape, policy: ResolvedPolicy, options: ContextOptions) -> KVMemory:
    """`kv_bytes` with its options in one value."""
    if tuple(layer.layer for layer in policy.layers) != shape.kv_layers:
        raise UsageError(f"the policy was resolved for another shape than {shape.name}; resolve it again")
    check_types(shape, policy)
    cells = cache_cells(options, shape.window)
    # Without flash attention V is stored transposed, every layer padded to the widest V of the model.
    v_width = None if options.flash_attn else max(layer.n_embd_v for layer in shape.layers)
    return KVMemory(
        cells,
        tuple(_layer(shape.layers[entry.layer], entry, cells, v_width) for entry in policy.layers),
        _recurrent_bytes(shape, options),
    )


def _layer(layer: LayerShape, entry: ResolvedLayer, cells: CacheCells, v_width: int | None) -> LayerMemory:
    windowed = layer.window > 0
    n_cells = cells.n_stream * (cells.window if windowed else cells.base)
    if not layer.stores_v and entry.k_type != entry.v_type:
        raise UsageError(
            f"layer {entry.layer}: K is {entry.k_type} and V is {entry.v_type}, but V is a part of K here; "
            "give both the same type"
        )
    if v_width is not None and entry.v_type not in NOT_QUANTIZED:
        raise UsageError(
            f"layer {entry.layer}: V is {entry.v_type}, which llama.cpp takes only with flash attention; "
            f"leave flash attention on or use one of {', '.join(NOT_QUANTIZED)}"
        )
    k_row = _row_bytes(entry.k_type, layer.n_head_kv, layer.head_dim_k, "K", entry.layer)
    v_row = _row_bytes(entry.v_type, layer.n_head_kv, layer.head_dim_v, "V", entry.layer)
    if not layer.stores_v:
        v_row = 0
    elif v_width is not None:
        v_row = get_format(entry.v_type).n_bytes(v_width)
    return LayerMemory(
        layer=entry.layer,
        kv_index=entry.kv_index,
        k_type=entry.k_type,
        v_type=entry.v_type,
        n_cells=n_cells,
        k_bytes=k_row * n_cells,
        v_bytes=v_row * n_cells,
        windowed=windowed,
    )


def _row_bytes(type_name: str, n_head_kv: int, head_dim: int, side: str, layer: int) -> int:
    """Bytes of one token's row, packed head by head: neither a block nor a rotation crosses heads.

    llama.cpp refuses a head dim that the block does not divide (llama_init_from_model); given that, packing
    the whole row at once, as it does, comes to the same.
    """
    try:
        return n_head_kv * get_format(type_name).n_bytes(head_dim)
    except FormatError as error:
        raise FormatError(f"layer {layer}, {side}: {error}") from None


def _recurrent_bytes(shape: ModelShape, options: ContextOptions) -> int | None:
    if not shape.n_recurrent:
        return 0
    if shape.state is None:
        return None
    per_sequence = (shape.state.n_conv + shape.state.n_state) * STATE_VALUE_BYTES
    return shape.n_recurrent * options.n_parallel * per_sequence
