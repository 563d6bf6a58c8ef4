"""Whether a policy's types fit a model's heads: what cannot run at all, and what runs without rotation.

Sources at the pin: llama_init_from_model (src/llama-context.cpp) for the blocks, the constructor of
llama_kv_cache (src/llama-kv-cache.cpp) for the rotation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvquant.errors import FormatError
from kvquant.formats.base import BlockFormat
from kvquant.formats.registry import CACHE_TYPES, get_format
from kvquant.formats.storage import NOT_QUANTIZED
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedLayer, ResolvedPolicy

ROTATED_MULTIPLE = 64
"""llama.cpp rotates quantized K and V of heads whose values are a multiple of this."""


def check_types(shape: ModelShape, policy: ResolvedPolicy) -> None:
    """Raise FormatError, one line for every command, where a cache type's block does not divide a head."""
    for side in "KV":
        entries = [
            entry
            for entry in policy.layers
            if not _fits(_type(entry, side), _head_dim(shape, entry.layer, side))
        ]
        if not entries:
            continue
        head_dim = _head_dim(shape, entries[0].layer, side)
        alike = [entry for entry in entries if _head_dim(shape, entry.layer, side) == head_dim]
        names = sorted({_type(entry, side) for entry in alike})
        block = _block(names[0])
        usable = [name for name in CACHE_TYPES if _fits(name, head_dim)]
        layer = shape.layers[alike[0].layer]
        what = "this model's cache" if layer.head_dim_k == layer.head_dim_v else f"{side} of this model"
        raise FormatError(
            f"{layers_text(entry.layer for entry in alike)}: blocks of {block} values ({', '.join(names)}) "
            f"do not divide heads of {head_dim}, so {what} can only be {_listed(usable)}; use one of these"
        )


def not_rotated(shape: ModelShape, policy: ResolvedPolicy, *, disabled: bool = False) -> str:
    """Say, in one line, which quantized layers llama.cpp stores without rotation; "" where there are none.

    disabled: whether LLAMA_ATTN_ROT_DISABLE switches rotation off.
    """
    sides = {side: _unrotated(shape, policy, side, disabled=disabled) for side in "KV"}
    found = [side for side in sides if sides[side]]
    if not found:
        return ""
    entries = sorted({*sides["K"], *sides["V"]}, key=lambda entry: entry.layer)
    dims = sorted({_head_dim(shape, entry.layer, side) for side in found for entry in sides[side]})
    reason = (
        f"heads of {_listed(dims)} values are not rotated (not a multiple of {ROTATED_MULTIPLE}, or mixed)"
    )
    if disabled:
        reason = "LLAMA_ATTN_ROT_DISABLE is set"
    return (
        f"{layers_text(entry.layer for entry in entries)}: quantized {' and '.join(found)} stored without "
        f"rotation, {reason}: outliers cost more there"
    )


def layers_text(layers: Iterable[int]) -> str:
    """Layers as people write them: "layer 3", "layers 0-3, 7"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    parts = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"layer{'' if one else 's'} {', '.join(parts)}"


def rotated_layers(shape: ModelShape, side: str) -> frozenset[int]:
    """Return the layers whose K or V llama.cpp rotates where a quantized type stores it.

    A cache rotates all its layers or none: their head dims must be one, and 64 must divide the head dim of
    the model's first layer, whichever cache that is in; sliding-window layers have a cache of their own
    (constructor of llama_kv_cache, src/llama-kv-cache.cpp at the pin). side: "K" or "V".
    """
    if side == "V" and shape.mla:
        return frozenset()
    found: set[int] = set()
    for windowed in (False, True):
        cache = [layer for layer in shape.kv_layers if (shape.layers[layer].window > 0) is windowed]
        dims = {_head_dim(shape, layer, side) for layer in cache}
        first = _head_dim(shape, 0, side)
        if len(dims) == 1 and (first or max(dims)) % ROTATED_MULTIPLE == 0:
            found.update(cache)
    return frozenset(found)


def _unrotated(
    shape: ModelShape, policy: ResolvedPolicy, side: str, *, disabled: bool
) -> Sequence[ResolvedLayer]:
    """The layers that fill a cache with a quantized type without rotation."""
    if side == "V" and shape.mla:
        return ()
    rotated = frozenset[int]() if disabled else rotated_layers(shape, side)
    return [
        entry
        for entry in policy.layers
        if shape.layers[entry.layer].n_head_kv
        and entry.layer not in rotated
        and _type(entry, side) in CACHE_TYPES
        and _type(entry, side) not in NOT_QUANTIZED
    ]


def _type(entry: ResolvedLayer, side: str) -> str:
    return entry.k_type if side == "K" else entry.v_type


def _head_dim(shape: ModelShape, layer: int, side: str) -> int:
    sizes = shape.layers[layer]
    return sizes.head_dim_k if side == "K" else sizes.head_dim_v


def _fits(type_name: str, head_dim: int) -> bool:
    """Whether llama.cpp takes the type for such heads; what it has no cache for is not its concern."""
    return type_name not in CACHE_TYPES or head_dim % _block(type_name) == 0


def _block(type_name: str) -> int:
    found = get_format(type_name)
    return found.block_size if isinstance(found, BlockFormat) else 1


def _listed(items: Sequence[object]) -> str:
    *first, last = [str(item) for item in items]
    return f"{', '.join(first)} or {last}" if first else last
