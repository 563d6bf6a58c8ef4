"""q4_0: 32 four-bit codes around zero and a signed scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvquant.formats.ggml import ScaledBlockFormat, ggml_source
from kvquant.formats.ops import Ops


@dataclass(frozen=True)
class Q4_0(ScaledBlockFormat):
    """fp16 scale d = peak / -8, then min(15, trunc(x / d + 8.5)) in four bits; decoded as (q - 8) * d.

    The peak is the signed value of largest magnitude: it gets code 0, the end of the range that reaches 8
    steps.
    """

    name: str = "q4_0"
    source: str = ggml_source("quantize_row_q4_0_ref", "dequantize_row_q4_0")
    block_bytes = 2 + 16

    def _fields(self, ops: Ops, x: Any, low: Any, high: Any) -> tuple[Any, ...]:
        scale = ops.divide(ops.peak(x, low, high), -8.0)
        return scale, ops.nibbles(ops.codes(x, None, ops.inverse(scale), 8.5, top=15))

    def _decode(self, ops: Ops, packed: Any, out: Any) -> None:
        scale, codes = ops.split(packed, 2, 16)
        ops.write(out, ops.from_nibbles(codes), 8, ops.from_half(scale))
