"""q4_1: 32 four-bit codes above a minimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvquant.formats.ggml import ScaledBlockFormat, ggml_source
from kvquant.formats.ops import Ops


@dataclass(frozen=True)
class Q4_1(ScaledBlockFormat):
    """fp16 scale d = (max - min) / 15, fp16 min, then min(15, trunc((x - min) / d + 0.5))."""

    name: str = "q4_1"
    source: str = ggml_source("quantize_row_q4_1_ref", "dequantize_row_q4_1")
    block_bytes = 2 + 2 + 16

    def _fields(self, ops: Ops, x: Any, low: Any, high: Any) -> tuple[Any, ...]:
        low = ops.first_low(x, low)
        scale = ops.divide(abs(high - low), 15.0)
        codes = ops.codes(x, low, ops.inverse(scale), 0.5, top=15)
        return scale, ops.half(low), ops.nibbles(codes)

    def _decode(self, ops: Ops, packed: Any, out: Any) -> None:
        scale, low, codes = ops.split(packed, 2, 2, 16)
        ops.write(out, ops.from_nibbles(codes), 0, ops.from_half(scale), ops.from_half(low))
