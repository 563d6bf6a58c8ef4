"""A policy as a function on K and V tensors."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kvquant.formats.base import Format
from kvquant.formats.hadamard import Rotated, llama_block
from kvquant.formats.registry import CACHE_TYPES, cache_format
from kvquant.policy import ResolvedPolicy
from kvquant.transform import KVTransform

_FLOATS = ("f32", "f16", "bf16")


def storage_format(type_name: str, head_dim: int, side: Literal["k", "v"], *, rotate: bool = True) -> Format:
    """Return what a head vector of ``head_dim`` values goes through in a cache of type ``type_name``.

    llama.cpp rotates heads before it packs them into its quantized types; ``rotate`` False is what it does
    under LLAMA_ATTN_ROT_DISABLE. Research formats bring their own rotation and are never rotated twice.
    Raises FormatError for an unknown type or a head the type cannot pack.
    """
    found = cache_format(type_name)
    found.check_width(head_dim)
    block = llama_block(head_dim, side)
    if rotate and block is not None and type_name in CACHE_TYPES and type_name not in _FLOATS:
        return Rotated(found, block)
    return found


def stored(x: Tensor, storage: Format) -> Tensor:
    """Return ``x``, (..., head_dim) of any float dtype, as it reads back from ``storage``, in the same
    dtype.
    """
    width = x.shape[-1]
    return storage.dequantize(storage.quantize(x.float().contiguous()), width).to(x.dtype)


class QuantizedKV:
    """Replaces the K and V a layer writes by what its cache types keep of them; call it as (layer, q, k, v).

    policy: a policy resolved for the model. Layers it does not name keep K and V as they are.
    rotate: whether llama.cpp's rotation is on. transform: of K before it is stored; what attention reads has
    it undone, which in exact arithmetic is the same as changing Q.
    """

    def __init__(
        self, policy: ResolvedPolicy, *, rotate: bool = True, transform: KVTransform | None = None
    ) -> None:
        self._types = {layer.layer: (layer.k_type, layer.v_type) for layer in policy.layers}
        self._rotate = rotate
        self._transforms = {layer.layer: layer for layer in transform.layers} if transform else {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and V, any shape (..., head_dim), as ``layer``'s cache gives them back; ``q`` is not
        read. With a transform K has to be (..., n_head_kv, head_dim).
        """
        del q
        if layer not in self._types:
            return k, v
        k_type, v_type = self._types[layer]
        k_format = storage_format(k_type, k.shape[-1], "k", rotate=self._rotate)
        v_format = storage_format(v_type, v.shape[-1], "v", rotate=self._rotate)
        return self._stored_keys(layer, k, k_format), stored(v, v_format)

    def _stored_keys(self, layer: int, k: Tensor, storage: Format) -> Tensor:
        transform = self._transforms.get(layer)
        if transform is None:
            return stored(k, storage)
        kept: Tensor = transform.undo_k(stored(transform.apply_k(k.float()), storage))
        return kept.to(k.dtype)
