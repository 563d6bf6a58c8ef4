"""The public functions on format names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from kvquant.formats.registry import format_names, get_format

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from kvquant.formats.base import Float32Array, Uint8Array

__all__ = ["dequantize", "format_names", "quantize"]


@overload
def quantize(x: torch.Tensor, name: str, *, threads: int = 1) -> torch.Tensor: ...
@overload
def quantize(x: npt.ArrayLike, name: str, *, threads: int = 1) -> Uint8Array: ...
def quantize(x: Any, name: str, *, threads: int = 1) -> Any:
    """Pack ``x``, floats of shape (..., width), into uint8 of shape (..., n_bytes) in the format ``name``.

    float16, float64 and other float dtypes are rounded to float32 first. A NumPy array gives a NumPy array, a
    Torch tensor a tensor on its device. threads: how many work on an array, which changes nothing but the
    time; for a tensor Torch's own setting counts and 1 is all this takes. Raises FormatError for an unknown
    name, a width or dtype the format cannot take, or a number of threads that cannot be.
    """
    return get_format(name).quantize(x, threads=threads)


@overload
def dequantize(packed: torch.Tensor, name: str, *, width: int, threads: int = 1) -> torch.Tensor: ...
@overload
def dequantize(packed: npt.ArrayLike, name: str, *, width: int, threads: int = 1) -> Float32Array: ...
def dequantize(packed: Any, name: str, *, width: int, threads: int = 1) -> Any:
    """Unpack uint8 of shape (..., n_bytes), as `quantize` made it, into float32 of shape (..., width).

    width: the values of one row. threads: as in `quantize`. Raises FormatError for an unknown name, for bytes
    that do not hold such rows, or a number of threads that cannot be.
    """
    return get_format(name).dequantize(packed, width, threads=threads)
