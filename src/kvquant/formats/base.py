"""What a format is: a fixed rule between rows of float32 values and rows of packed bytes.

A row is the last axis of an array; its width is the number of values. A format packs each row on its own, and
`quantize` then `dequantize` keep every other axis as it was. NumPy arrays give NumPy arrays, Torch tensors
give Torch tensors on the same device; torch is imported only by a caller who already holds a tensor.

A format either implements `Format` as it stands, or derives from `UnitFormat`, which checks the arguments,
accepts any strides and float dtype, and hands the format contiguous units in pieces of bounded size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
import numpy.typing as npt

from kvquant.errors import FormatError
from kvquant.formats.chunks import map_units
from kvquant.formats.ops import Ops
from kvquant.formats.tensors import float_rows, is_tensor, packed_rows

if TYPE_CHECKING:
    import torch

__all__ = ["BlockFormat", "Float32Array", "Format", "Uint8Array", "UnitFormat", "is_tensor"]

Float32Array = npt.NDArray[np.float32]
Uint8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Format(ABC):
    """One storage format. Subclasses are frozen and hold only parameters, never data.

    name: the name in policies and on the command line.
    source: the paper, or the C function and commit, that defines the bytes.
    """

    name: str
    source: str

    @abstractmethod
    def check_width(self, width: int) -> None:
        """Raise FormatError when a row of ``width`` values cannot be packed."""

    @abstractmethod
    def n_bytes(self, width: int) -> int:
        """Return the packed bytes of one row of ``width`` values. Raises FormatError as check_width does."""

    def bits_per_value(self, width: int) -> float:
        """Return the stored bits divided by the values of one row, scales and norms included."""
        return 8 * self.n_bytes(width) / width

    @overload
    def quantize(self, x: torch.Tensor, *, threads: int = 1) -> torch.Tensor: ...
    @overload
    def quantize(self, x: npt.ArrayLike, *, threads: int = 1) -> Uint8Array: ...
    @abstractmethod
    def quantize(self, x: Any, *, threads: int = 1) -> Any:
        """Pack ``x``, float32 of shape (..., width), into uint8 of shape (..., n_bytes(width)).

        Other float dtypes are rounded to float32 first. threads: how many share an array's pieces; the bytes
        do not depend on it. Raises FormatError for a width or dtype that it cannot take, for less than one
        thread, and for more with a tensor, since Torch has its own.
        """

    @overload
    def dequantize(self, packed: torch.Tensor, width: int, *, threads: int = 1) -> torch.Tensor: ...
    @overload
    def dequantize(self, packed: npt.ArrayLike, width: int, *, threads: int = 1) -> Float32Array: ...
    @abstractmethod
    def dequantize(self, packed: Any, width: int, *, threads: int = 1) -> Any:
        """Unpack uint8 of shape (..., n_bytes(width)) into float32 of shape (..., width).

        threads: as in `quantize`. Raises FormatError when the dtype is not uint8 or the last axis does not
        hold ``width`` values, and as `quantize` for the threads.
        """


@dataclass(frozen=True)
class UnitFormat(Format):
    """A format that packs a row unit by unit, each on its own: `_encode` and `_decode` see only units.

    chunk_values: values `_encode` and `_decode` want at a time, where that is more than the ops' own measure.
    """

    chunk_values: ClassVar[int] = 0

    @abstractmethod
    def unit(self, width: int) -> tuple[int, int]:
        """Return (values, bytes) of one unit of a row of ``width`` values. Raises as check_width does."""

    @abstractmethod
    def _encode(self, ops: Ops, x: Any, out: Any) -> None:
        """Write the bytes of ``x``, float32 (n_units, values), into ``out``, uint8 (n_units, bytes).

        ``x`` is C-contiguous and may be the caller's own memory: it must not be written to.
        """

    @abstractmethod
    def _decode(self, ops: Ops, packed: Any, out: Any) -> None:
        """Write the values of ``packed``, uint8 (n_units, bytes), into ``out``, float32 (n_units, values)."""

    def check_width(self, width: int) -> None:
        self.unit(width)

    def n_bytes(self, width: int) -> int:
        n_values, n_bytes = self.unit(width)
        return width // n_values * n_bytes

    def quantize(self, x: Any, *, threads: int = 1) -> Any:
        x = float_rows(x)
        unit = self.unit(x.shape[-1])
        return map_units(self._encode, x, unit, "float32", "uint8", self.chunk_values, threads)

    def dequantize(self, packed: Any, width: int, *, threads: int = 1) -> Any:
        n_values, n_bytes = self.unit(width)
        packed = packed_rows(packed, self.n_bytes(width), f"{self.name} rows of {width} values")
        unit = (n_bytes, n_values)
        return map_units(self._decode, packed, unit, "uint8", "float32", self.chunk_values, threads)


@dataclass(frozen=True)
class BlockFormat(UnitFormat):
    """A format of fixed blocks: every `block_size` values become `block_bytes` bytes, whatever the width.

    A row's blocks lie one after another, as ggml stores them.
    """

    block_size: ClassVar[int]
    block_bytes: ClassVar[int]

    def unit(self, width: int) -> tuple[int, int]:
        if width < 0 or width % self.block_size:
            padded = max(-(-width // self.block_size), 0) * self.block_size
            raise FormatError(
                f"{self.name} packs blocks of {self.block_size} values and a width of {width} is not a "
                f"multiple of that; pad the rows to {padded} values or use f16"
            )
        return self.block_size, self.block_bytes

    def bits_per_value(self, width: int) -> float:
        self.check_width(width)
        return 8 * self.block_bytes / self.block_size
