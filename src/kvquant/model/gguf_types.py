"""The numbers of the GGUF container: value types, tensor types and their block sizes."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class ValueType(IntEnum):
    """`gguf_type` in ggml/include/gguf.h."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


STRUCT_CODES = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
"""How `struct` reads one value of a fixed size."""


class TensorType(NamedTuple):
    """One ggml type: values per block and bytes per block."""

    name: str
    block_size: int
    block_bytes: int


# ggml/include/ggml.h:ggml_type and the static_asserts of ggml/src/ggml-common.h at the pin.
TENSOR_TYPES = {
    0: TensorType("f32", 1, 4),
    1: TensorType("f16", 1, 2),
    2: TensorType("q4_0", 32, 2 + 16),
    3: TensorType("q4_1", 32, 2 + 2 + 16),
    6: TensorType("q5_0", 32, 2 + 4 + 16),
    7: TensorType("q5_1", 32, 2 + 2 + 4 + 16),
    8: TensorType("q8_0", 32, 2 + 32),
    9: TensorType("q8_1", 32, 2 + 2 + 32),
    10: TensorType("q2_K", 256, 2 + 2 + 16 + 64),
    11: TensorType("q3_K", 256, 2 + 64 + 32 + 12),
    12: TensorType("q4_K", 256, 2 + 2 + 12 + 128),
    13: TensorType("q5_K", 256, 2 + 2 + 12 + 128 + 32),
    14: TensorType("q6_K", 256, 2 + 16 + 192),
    15: TensorType("q8_K", 256, 4 + 256 + 32),
    16: TensorType("iq2_xxs", 256, 2 + 64),
    17: TensorType("iq2_xs", 256, 2 + 64 + 8),
    18: TensorType("iq3_xxs", 256, 2 + 96),
    19: TensorType("iq1_s", 256, 2 + 32 + 16),
    20: TensorType("iq4_nl", 32, 2 + 16),
    21: TensorType("iq3_s", 256, 2 + 104 + 4),
    22: TensorType("iq2_s", 256, 2 + 64 + 16),
    23: TensorType("iq4_xs", 256, 2 + 2 + 4 + 128),
    24: TensorType("i8", 1, 1),
    25: TensorType("i16", 1, 2),
    26: TensorType("i32", 1, 4),
    27: TensorType("i64", 1, 8),
    28: TensorType("f64", 1, 8),
    29: TensorType("iq1_m", 256, 32 + 16 + 8),
    30: TensorType("bf16", 1, 2),
    34: TensorType("tq1_0", 256, 2 + 4 + 48),
    35: TensorType("tq2_0", 256, 2 + 64),
    39: TensorType("mxfp4", 32, 1 + 16),
    40: TensorType("nvfp4", 64, 4 + 32),
    41: TensorType("q1_0", 128, 2 + 16),
    42: TensorType("q2_0", 64, 2 + 16),
}

REMOVED_TYPES = {
    4: "q4_2",
    5: "q4_3",
    31: "q4_0_4_4",
    32: "q4_0_4_8",
    33: "q4_0_8_8",
    36: "iq4_nl_4_4",
    37: "iq4_nl_4_8",
    38: "iq4_nl_8_8",
}
"""Numbers that ggml.h keeps free: what they were."""
