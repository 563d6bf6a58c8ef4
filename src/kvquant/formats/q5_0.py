"""q5_0: q4_0 with a fifth bit, kept apart from the other four."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvquant.formats.ggml import ScaledBlockFormat, ggml_source
from kvquant.formats.ops import Ops


@dataclass(frozen=True)
class Q5_0(ScaledBlockFormat):
    """fp16 scale d = peak / -16, then min(31, trunc(x / d + 16.5)) in five bits; decoded as (q - 16) * d.

    The block holds the 32 fifth bits first, as one little-endian word, then the low four bits as q4_0 does.
    """

    name: str = "q5_0"
    source: str = ggml_source("quantize_row_q5_0_ref", "dequantize_row_q5_0")
    block_bytes = 2 + 4 + 16

    def _fields(self, ops: Ops, x: Any, low: Any, high: Any) -> tuple[Any, ...]:
        scale = ops.divide(ops.peak(x, low, high), -16.0)
        codes = ops.codes(x, None, ops.inverse(scale), 16.5, top=31)
        return scale, ops.fifth_bits(codes), ops.nibbles(codes)

    def _decode(self, ops: Ops, packed: Any, out: Any) -> None:
        scale, fifth, codes = ops.split(packed, 2, 4, 16)
        ops.write(out, ops.with_fifth_bits(ops.from_nibbles(codes), fifth), 16, ops.from_half(scale))
