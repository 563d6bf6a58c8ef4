"""f32: the values themselves, little-endian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvquant.formats.ggml import PlainFormat, ggml_source
from kvquant.formats.ops import Ops


@dataclass(frozen=True)
class F32(PlainFormat):
    """IEEE 754 binary32, 4 bytes a value; every bit pattern, NaN payloads included, comes back as it was."""

    name: str = "f32"
    source: str = ggml_source("memcpy", "memcpy")
    value_bytes = 4

    def _encode(self, ops: Ops, x: Any, out: Any) -> None:
        ops.join(out, ops.float_bytes(x))

    def _decode(self, ops: Ops, packed: Any, out: Any) -> None:
        out[:] = ops.from_float_bytes(packed)
