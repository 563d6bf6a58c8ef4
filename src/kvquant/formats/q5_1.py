"""q5_1: q4_1 with a fifth bit, kept apart from the other four."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvquant.formats.ggml import ScaledBlockFormat, ggml_source
from kvquant.formats.ops import Ops


@dataclass(frozen=True)
class Q5_1(ScaledBlockFormat):
    """fp16 scale d = (max - min) / 31, fp16 min, then trunc((x - min) / d + 0.5)."""

    name: str = "q5_1"
    source: str = ggml_source("quantize_row_q5_1_ref", "dequantize_row_q5_1")
    block_bytes = 2 + 2 + 4 + 16

    def _fields(self, ops: Ops, x: Any, low: Any, high: Any) -> tuple[Any, ...]:
        low = ops.first_low(x, low)
        scale = ops.divide(abs(high - low), 31.0)
        codes = ops.codes(x, low, ops.inverse(scale), 0.5, top=31)
        return scale, ops.half(low), ops.fifth_bits(codes), ops.nibbles(codes)

    def _decode(self, ops: Ops, packed: Any, out: Any) -> None:
        scale, low, fifth, codes = ops.split(packed, 2, 2, 4, 16)
        codes = ops.with_fifth_bits(ops.from_nibbles(codes), fifth)
        ops.write(out, codes, 0, ops.from_half(scale), ops.from_half(low))
