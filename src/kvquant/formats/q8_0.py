"""q8_0: 32 signed bytes and a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvquant.formats.ggml import ScaledBlockFormat, ggml_source
from kvquant.formats.ops import Ops


@dataclass(frozen=True)
class Q8_0(ScaledBlockFormat):
    """fp16 scale d = max|x| / 127, then round(x / d) as int8, halves away from zero; decoded as q * d."""

    name: str = "q8_0"
    source: str = ggml_source("quantize_row_q8_0_ref", "dequantize_row_q8_0")
    block_bytes = 2 + 32

    def _fields(self, ops: Ops, x: Any, low: Any, high: Any) -> tuple[Any, ...]:
        scale = ops.divide(ops.magnitude(low, high), 127.0)
        return scale, ops.bytes(ops.signed_codes(x, ops.inverse(scale)))

    def _decode(self, ops: Ops, packed: Any, out: Any) -> None:
        scale, codes = ops.split(packed, 2, 32)
        ops.write(out, ops.int8(codes), 0, ops.from_half(scale))
