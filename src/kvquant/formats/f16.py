"""f16: IEEE 754 half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvquant.formats.ggml import PlainFormat, ggml_source
from kvquant.formats.ops import Ops


@dataclass(frozen=True)
class F16(PlainFormat):
    """IEEE 754 binary16, 2 bytes a value: nearest even, infinity from 65520 on, NaN as ±0x7E00."""

    name: str = "f16"
    source: str = ggml_source("ggml_fp32_to_fp16_row", "ggml_fp16_to_fp32_row")
    value_bytes = 2

    def _encode(self, ops: Ops, x: Any, out: Any) -> None:
        ops.join(out, ops.half(x))

    def _decode(self, ops: Ops, packed: Any, out: Any) -> None:
        out[:] = ops.from_half(packed)
