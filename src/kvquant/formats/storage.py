"""What a head goes through on its way into a cache: the rotation that goes with a type, then its format."""

from __future__ import annotations

from typing import Literal

from kvquant.formats.base import Format
from kvquant.formats.coded import CodedBlock
from kvquant.formats.hadamard import Rotated, llama_block
from kvquant.formats.registry import UPSTREAM_TYPES, cache_format

NOT_QUANTIZED = ("f32", "f16", "bf16")


def rotation_block(
    type_name: str, head_dim: int, side: Literal["k", "v"], *, rotate: bool = True
) -> int | None:
    """Return by blocks of how many values heads are rotated before they are stored; None for not at all.

    type_name: what they are stored as. llama.cpp rotates what it stores in its quantized types; ``rotate``
    False is what it does under LLAMA_ATTN_ROT_DISABLE. The types of coded blocks are nothing without their
    rotation, and research formats bring their own. Raises FormatError for an unknown type.
    """
    found = cache_format(type_name)
    if isinstance(found, CodedBlock):
        return found.rotation_block or llama_block(head_dim, side)
    is_rotated = rotate and type_name in UPSTREAM_TYPES and type_name not in NOT_QUANTIZED
    return llama_block(head_dim, side) if is_rotated else None


def storage_format(type_name: str, head_dim: int, side: Literal["k", "v"], *, rotate: bool = True) -> Format:
    """Return what a head vector of ``head_dim`` values goes through in a cache of type ``type_name``.

    rotate: as in `rotation_block`. Raises FormatError for an unknown type or a head the type cannot pack.
    """
    found = cache_format(type_name)
    found.check_width(head_dim)
    block = rotation_block(type_name, head_dim, side, rotate=rotate)
    return found if block is None else Rotated(found, block)
