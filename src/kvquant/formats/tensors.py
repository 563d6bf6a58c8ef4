"""Telling NumPy from Torch, and checking what a caller hands to a format."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from kvquant.errors import FormatError

if TYPE_CHECKING:
    import torch


def is_tensor(x: object) -> TypeGuard[torch.Tensor]:
    """Return whether ``x`` is a Torch tensor, without importing torch for those who do not use it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def float_rows(x: Any) -> Any:
    """Return ``x`` as an array or tensor of floats with at least one axis, neither copied nor cast.

    Raises FormatError for anything that is not float.
    """
    if is_tensor(x):
        x = x.detach()
        is_float = x.is_floating_point()
    else:
        x = np.asarray(x)
        is_float = np.issubdtype(x.dtype, np.floating)
    if not is_float:
        raise FormatError(f"quantize takes float values, not {x.dtype}; convert them to float32 first")
    if x.ndim == 0:
        raise FormatError("quantize takes rows of values, not a single number; give it an axis: x[None]")
    return x


def packed_rows(packed: Any, n_bytes: int, what: str) -> Any:
    """Return ``packed`` as a uint8 array or tensor whose last axis has ``n_bytes`` entries, uncopied.

    what: the rows it should hold, for the message. Raises FormatError when dtype or last axis differ.
    """
    if is_tensor(packed):
        packed = packed.detach()
        is_uint8 = str(packed.dtype) == "torch.uint8"
    else:
        packed = np.asarray(packed)
        is_uint8 = packed.dtype == np.uint8
    if not is_uint8:
        raise FormatError(f"dequantize takes bytes as uint8, not {packed.dtype}; pass what quantize returned")
    given = packed.shape[-1] if packed.ndim else "no"
    if given != n_bytes:
        raise FormatError(
            f"{what} take {n_bytes} bytes, but the last axis has {given}; check the width and the format"
        )
    return packed
