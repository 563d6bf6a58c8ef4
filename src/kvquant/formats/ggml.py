"""What ggml's formats share: the commit that defines their bytes, and the block of 32 values with a scale."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar

from kvquant.errors import FormatError
from kvquant.formats.base import BlockFormat, UnitFormat
from kvquant.formats.ops import Ops

COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
"""The commit of ggml-org/llama.cpp whose functions the formats follow bit for bit."""


def ggml_source(quantize: str, dequantize: str) -> str:
    """Return a format's source text: the two C functions and the commit they are read at."""
    return f"{quantize}, {dequantize}; llama.cpp {COMMIT[:8]}"


@dataclass(frozen=True)
class PlainFormat(UnitFormat):
    """A format that stores every value on its own, `value_bytes` each, without blocks."""

    value_bytes: ClassVar[int]

    def unit(self, width: int) -> tuple[int, int]:
        if width < 0:
            raise FormatError(f"a row cannot have {width} values; give a width of 0 or more")
        # The values are independent, so any divisor serves as the unit; a long one keeps the passes flat.
        n_values = gcd(width, 1024)
        return n_values, n_values * self.value_bytes

    def bits_per_value(self, width: int) -> float:
        self.check_width(width)
        return 8.0 * self.value_bytes


@dataclass(frozen=True)
class ScaledBlockFormat(BlockFormat):
    """A block of 32 values that starts with its fp16 scale.

    A block that holds a NaN or an infinity gets the scale NaN and otherwise the bytes of a block of zeros, so
    that it decodes to NaN in every place and its neighbours are untouched. C leaves such blocks undefined.
    """

    block_size = 32

    @abstractmethod
    def _fields(self, ops: Ops, x: Any, low: Any, high: Any) -> tuple[Any, ...]:
        """Return the scales, float32 (n, 1), then the byte fields (n, k) that follow them in a block.

        x: finite float32 (n, 32). low, high: each block's least and greatest value, (n, 1).
        """

    def _encode(self, ops: Ops, x: Any, out: Any) -> None:
        low, high = ops.extremes(x)
        broken = ops.broken(low, high)
        if broken is not None:
            x, low, high = (ops.where(broken, 0.0, values) for values in (x, low, high))
        scale, *fields = self._fields(ops, x, low, high)
        if broken is not None:
            scale = ops.where(broken, float("nan"), scale)
        ops.join(out, ops.half(scale), *fields)
