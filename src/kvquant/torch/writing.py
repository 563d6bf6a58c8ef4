"""A policy as a function on K and V tensors."""

from __future__ import annotations

from torch import Tensor

from kvquant.formats.base import Format
from kvquant.formats.storage import storage_format
from kvquant.policy import ResolvedPolicy
from kvquant.transform import KVTransform
from kvquant.transform.order import check_order


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

    Raises TransformError for a type that wants ordered dimensions, where no transform orders them.
    """

    def __init__(
        self, policy: ResolvedPolicy, *, rotate: bool = True, transform: KVTransform | None = None
    ) -> None:
        check_order(policy, transform)
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
