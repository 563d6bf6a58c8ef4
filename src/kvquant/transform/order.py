"""The order in which k5x3 and k4x2 want the dimensions of a key: the half that carries more first, by block.

Keys are stored as M (k − c). Moving the rows of M moves the dimensions, and as M⁻ᵀ moves with them, logits
stay what they are. So an order needs no field of its own: it is a matrix M with its rows in their places.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvquant.errors import TransformError
from kvquant.formats.registry import ORDERED_TYPES
from kvquant.formats.split import HALF
from kvquant.policy import ResolvedPolicy
from kvquant.transform.moments import LayerMoments
from kvquant.transform.transform import KVTransform, LayerTransform

BLOCK = 2 * HALF
PROVENANCE_KEY = "order"
"""Under which a `KVTransform` says that its layers are ordered, by blocks of how many values; the sidecar's
key `kv-transform.order` says it to llama.cpp."""


def places(head_dim: int) -> npt.NDArray[np.intp]:
    """Return for each place of a stored key which dimension, by falling energy, it holds; (head_dim,).

    Every block of 64 gets 32 of the stronger half of all dimensions, then 32 of the weaker, in wider heads
    each n-th of them. Raises TransformError for heads whose width is not a multiple of 64.
    """
    if head_dim <= 0 or head_dim % BLOCK:
        raise TransformError(
            f"order: heads of {head_dim} values; blocks of two halves take multiples of {BLOCK}"
        )
    ranks = np.arange(head_dim).reshape(2, HALF, head_dim // BLOCK)
    return ranks.transpose(2, 0, 1).reshape(-1)


def ordered_layer(transform: LayerTransform, moments: LayerMoments) -> LayerTransform:
    """Return ``transform`` as a matrix that also puts the dimensions of each head into their places.

    moments: of the layer's keys, whose energy after the transform decides. Raises as `places` does.
    """
    at = places(transform.head_dim)
    matrices = []
    for index, head in enumerate(moments.heads):
        p = head.key_energy(transform.centre[index].astype(np.float64))
        forward = np.ones(transform.head_dim) if transform.forward is None else transform.forward[index]
        matrix = np.diag(forward) if forward.ndim == 1 else forward
        exact = matrix.astype(np.float64)
        energy = np.einsum("ij,jk,ik->i", exact, p, exact)
        matrices.append(matrix[np.argsort(-energy, kind="stable")][at])
    return LayerTransform(transform.layer, transform.centre, np.stack(matrices), transform.gain_db)


def is_ordered(transform: KVTransform, layer: int) -> bool:
    """Return whether ``transform`` puts the keys of ``layer`` into the order."""
    return transform.provenance.get(PROVENANCE_KEY) == BLOCK and transform.of(layer) is not None


def missing_order(policy: ResolvedPolicy, transform: KVTransform | None) -> str:
    """Say which layer has a type that wants ordered dimensions where nothing orders them; "" for none."""
    for entry in policy.layers:
        if entry.v_type in ORDERED_TYPES:
            return f"layer {entry.layer}: {entry.v_type} is a type for K alone; V has no order to put it in"
        if entry.k_type in ORDERED_TYPES and (transform is None or not is_ordered(transform, entry.layer)):
            return (
                f"layer {entry.layer}: {entry.k_type} needs a transform that orders the dimensions of keys; "
                f"kvquant calibrate --policy '*:k={entry.k_type}/v=f16' makes one"
            )
    return ""


def check_order(policy: ResolvedPolicy, transform: KVTransform | None) -> None:
    """Raise TransformError for a type that wants ordered dimensions where no transform orders them."""
    missing = missing_order(policy, transform)
    if missing:
        raise TransformError(missing)
