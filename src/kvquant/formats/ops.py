"""The few array operations the ggml formats are written in, so that each format is written once.

`ops_numpy` and `ops_torch` implement them with the same results, bit for bit. Every operation works on one
piece: n is the number of blocks in it, block_size the values of a block; one-per-block quantities have shape
(n, 1). Each arithmetic step rounds to float32 on its own, as C does without contraction. What an operation
returns may be a work
buffer: it holds until the same operation is called again.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Ops(Protocol):
    """Array operations on one piece. `Any` is an ndarray or a tensor, the same kind throughout."""

    chunk_values: int
    """Most values a piece may hold."""

    # -- one number per block --

    def extremes(self, x: Any) -> tuple[Any, Any]:
        """Return the least and greatest value of each block of ``x`` (n, block_size); NaN if it has one."""

    def peak(self, x: Any, low: Any, high: Any) -> Any:
        """Return each block's value of largest magnitude: the first of two equal magnitudes, +0 for zeros.

        low, high: the extremes of ``x``.
        """

    def first_low(self, x: Any, low: Any) -> Any:
        """Return ``low``, where it is a zero with the sign of the block's first zero."""

    def magnitude(self, low: Any, high: Any) -> Any:
        """Return max(|low|, |high|)."""

    def divide(self, x: Any, by: Any) -> Any:
        """Return x / by, rounded once (not a product with a rounded reciprocal); one may be a float."""

    def inverse(self, scale: Any) -> Any:
        """Return 1 / scale, and 0 where the scale is zero."""

    def broken(self, low: Any, high: Any) -> Any:
        """Return a mask (n, 1) of the blocks that hold a NaN or an infinity, or None when no block does."""

    def where(self, mask: Any, x: Any, y: Any) -> Any:
        """Return ``x`` where ``mask`` is true, else ``y``, as a new float32 array; one may be a number."""

    # -- codes --

    def codes(self, x: Any, low: Any | None, factor: Any, offset: float, top: int) -> Any:
        """Return min(trunc((x - low) * factor + offset), top) as uint8, 0 where a step is not finite.

        low, factor: (n, 1); ``low`` None subtracts nothing. Where the sum is finite it must not be negative
        nor reach 256.
        """

    def signed_codes(self, x: Any, factor: Any) -> Any:
        """Return x * factor to the nearest integer, halves away from zero, as int8; 0 where not finite."""

    def nearest(self, x: Any, table: npt.NDArray[np.uint8]) -> Any:
        """Return table[floor(2 x) + 256] as uint8, x clamped to [-128, 127.5] first, NaN as 127.5."""

    def lookup(self, table: npt.NDArray[np.float32], codes: Any) -> Any:
        """Return the float32 ``table`` entry of every uint8 code."""

    def columns(self, x: Any) -> Any:
        """Return ``x`` (n, block_size) as (block_size, n), contiguous: place j of every block in row j."""

    def sum_rows(self, x: Any) -> Any:
        """Return the sum of the rows of ``x`` (block_size, n), first to last, rounded after each, as (n,)."""

    # -- bytes --

    def nibbles(self, codes: Any) -> Any:
        """Pack 4 bits each of codes (n, 32) into (n, 16): code j low in byte j, code j + 16 above it."""

    def from_nibbles(self, packed: Any) -> Any:
        """Unpack (n, 16) bytes into (n, 32) uint8; the inverse of `nibbles`."""

    def levels(self, packed: Any, table: npt.NDArray[np.int8]) -> Any:
        """Return the ``table`` entries, int8 (n, 32), of 4-bit codes as `nibbles` packs them into (n, 16)."""

    def fifth_bits(self, codes: Any) -> Any:
        """Pack bit 4 of codes (n, 32) into (n, 4): a little-endian 32-bit word with code j's at bit j."""

    def with_fifth_bits(self, codes: Any, packed: Any) -> Any:
        """Return 4-bit ``codes`` (n, 32) with bit 4 as ``packed`` (n, 4) says; inverse of `fifth_bits`."""

    def half(self, x: Any) -> Any:
        """Return float32 (n, k) as fp16 bytes (n, 2 k), little-endian, nearest even.

        A NaN becomes 0x7E00 with its sign.
        """

    def from_half(self, packed: Any) -> Any:
        """Return little-endian fp16 bytes (n, 2 k) as float32 (n, k)."""

    def bfloat(self, x: Any) -> Any:
        """Return float32 (n, k) as bf16 bytes (n, 2 k), little-endian, nearest even.

        A NaN keeps its upper half with the quiet bit set.
        """

    def from_bfloat(self, packed: Any) -> Any:
        """Return little-endian bf16 bytes (n, 2 k) as float32 (n, k)."""

    def float_bytes(self, x: Any) -> Any:
        """Return float32 (n, k) as its little-endian bytes (n, 4 k)."""

    def from_float_bytes(self, packed: Any) -> Any:
        """Return little-endian float32 bytes (n, 4 k) as float32 (n, k)."""

    def int8(self, packed: Any) -> Any:
        """Return bytes read as two's complement int8."""

    def bytes(self, codes: Any) -> Any:
        """Return int8 codes as their two's complement bytes."""

    def join(self, out: Any, *fields: Any) -> None:
        """Write the byte fields (n, k) side by side into ``out`` (n, sum of k)."""

    def split(self, packed: Any, *lengths: int) -> list[Any]:
        """Return the fields of ``packed`` (n, sum of lengths), each (n, length), its rows contiguous."""

    def write(self, out: Any, codes: Any, minus: int, factor: Any, plus: Any | None = None) -> None:
        """Write (codes - minus) * factor + plus into ``out``, float32 (n, 32).

        codes: int8, or uint8 below 128; may be overwritten. factor, plus: (n, 1), ``plus`` None adds nothing.
        """
