"""What a format is: a fixed rule between rows of float32 values and rows of packed bytes.

A row is the last axis of an array; its width is the number of values. A format packs each row on its own, and
`quantize` then `dequantize` keep every other axis as it was. NumPy arrays give NumPy arrays, Torch tensors give
Torch tensors; torch is imported only by a caller who already holds a tensor.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, overload

import numpy as np
import numpy.typing as npt


if TYPE_CHECKING:
    import torch

Float32Array = npt.NDArray[np.float32]
Uint8Array = npt.NDArray[np.uint8]


def is_tensor(x: object) -> TypeGuard[torch.Tensor]:
    """Return whether ``x`` is a Torch tensor, without importing torch for those who do not use it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


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
    def quantize(self, x: torch.Tensor) -> torch.Tensor: ...
    @overload
    def quantize(self, x: npt.ArrayLike) -> Uint8Array: ...
    @abstractmethod
    def quantize(self, x: Any) -> Any:
        """Pack ``x``, float32 of shape (..., width), into uint8 of shape (..., n_bytes(width))."""

    @overload
    def dequantize(self, packed: torch.Tensor, width: int) -> torch.Tensor: ...
    @overload
    def dequantize(self, packed: npt.ArrayLike, width: int) -> Float32Array: ...
    @abstractmethod
    def dequantize(self, packed: Any, width: int) -> Any:
        """Unpack uint8 of shape (..., n_bytes(width)) into float32 of shape (..., width)."""
