"""bf16: the upper half of a float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvquant.formats.ggml import PlainFormat, ggml_source
from kvquant.formats.ops import Ops


@dataclass(frozen=True)
class BF16(PlainFormat):
    """bfloat16, 2 bytes a value: nearest even, subnormals kept; a NaN keeps its upper half, made quiet."""

    name: str = "bf16"
    source: str = ggml_source("ggml_fp32_to_bf16_row_ref", "ggml_bf16_to_fp32_row")
    value_bytes = 2

    def _encode(self, ops: Ops, x: Any, out: Any) -> None:
        ops.join(out, ops.bfloat(x))

    def _decode(self, ops: Ops, packed: Any, out: Any) -> None:
        out[:] = ops.from_bfloat(packed)
