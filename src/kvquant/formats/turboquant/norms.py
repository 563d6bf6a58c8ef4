"""Vector lengths: summed in an order that NumPy and Torch share, stored as fp16 or fp32."""

from __future__ import annotations

from typing import Any, Literal

from kvquant.formats.arrays import Array, cast, contiguous, copied, namespace

NormType = Literal["f16", "f32"]

# The largest fp16; and a quarter of the fp32 range, so that decoded vectors cannot overflow.
_LARGEST = {"f16": 65504.0, "f32": 2.0**126}
_DTYPE = {"f16": "float16", "f32": "float32"}


def n_norm_bytes(norm_type: NormType) -> int:
    """Return the bytes of one stored norm."""
    return 2 if norm_type == "f16" else 4


def column_sums(rows: Array) -> Array:
    """Return the sum of every column of float64 (m, n), as float64 (n,); m >= 1.

    Halves are added onto each other, element by element, because the libraries' own sums round in orders of
    their own.
    """
    total = rows
    while len(total) > 1:
        half = len(total) // 2
        folded = total[:half] + total[half : 2 * half]
        if len(total) % 2:
            folded[0] += total[-1]
        total = folded
    return total[0]


def column_norms(columns: Array) -> Array:
    """Return the Euclidean length of every column of float64 (m, n), as float64 (n,).

    Squares of float32 values neither overflow nor vanish in float64.
    """
    return namespace(columns).sqrt(column_sums(columns * columns))


def norms_to_bytes(norms: Array, norm_type: NormType) -> Array:
    """Return float64 (n,) norms as uint8 (n, n_norm_bytes), little-endian.

    They are rounded to fp32 and then, for f16, to fp16, as Torch does in one step. A norm above 65504 (f16)
    or 2^126 (f32) is stored as that limit; NaN stays NaN.
    """
    limited = norms.clip(None, _LARGEST[norm_type])
    stored = contiguous(cast(cast(limited, "float32"), _DTYPE[norm_type]))
    return stored.view(namespace(norms).uint8).reshape(len(norms), n_norm_bytes(norm_type))


def norms_from_bytes(stored: Array, norm_type: NormType) -> Array:
    """Undo `norms_to_bytes`: uint8 (n, n_norm_bytes) to float32 (n,)."""
    xp: Any = namespace(stored)
    return cast(copied(stored).view(getattr(xp, _DTYPE[norm_type])).reshape(len(stored)), "float32")
