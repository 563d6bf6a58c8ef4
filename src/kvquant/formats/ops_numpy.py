"""The operations of `ops.Ops` in NumPy, every heavy step a flat pass over memory that is in cache.

NumPy is fast on long contiguous runs and slow on a short inner axis, and a block is short. So reductions run
over a copy that puts place j of every block in one run, bytes move as fixed-size records (`V16`), and work
buffers are kept from piece to piece. Decoders convert codes to float32 in the multiplication by the scale,
where NumPy does it a few thousand at a time, and touch every value once.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

# The largest float32 below one half. trunc(y + copysign(HALF, y)) is y rounded half away from zero, exactly,
# where adding 0.5 itself would carry nextafter(0.5, 0) up to 1 (docs/formats.md gives the argument).
HALF = np.nextafter(np.float32(0.5), np.float32(0))
_HALF_BITS = HALF.view(np.uint32)
_SIGN = np.uint32(0x80000000)
_LOW_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_NIBBLE_SHIFTS = np.array([0, 0, 4, 4], np.uint64)  # of the 32 codes of a block, eight at a time


class NumpyOps:
    """Holds the work buffers of one call; not shared between threads."""

    # 512 KiB of float32: longer pieces leave the second-level cache, shorter ones spend their time in Python
    # (benchmarks/formats.py decided between powers of two).
    chunk_values = 1 << 17

    def __init__(self) -> None:
        self._buffers: dict[str, npt.NDArray[Any]] = {}

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a work array, contents undefined. A call's first piece is its largest and sets the size."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape[1:] != shape[1:] or len(buffer) < shape[0]:
            buffer = self._buffers[name] = np.empty(shape, dtype)
        return buffer[: shape[0]]

    def _filled(self, name: str, shape: tuple[int, ...], row: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array of ``shape`` whose rows all are ``row``; a name goes with one row."""
        if name not in self._buffers or len(self._buffers[name]) < shape[0]:
            self._buffer(name, shape, row.dtype)[...] = row
        return self._buffers[name][: shape[0]]

    # -- one number per block --

    def extremes(self, x: Any) -> tuple[Any, Any]:
        n, size = x.shape
        # Four values are one 16-byte record: record j of every block goes to row j, then places are parted.
        groups = self._buffer("scratch", (n, size), np.float32).reshape(-1).view("V16").reshape(size // 4, n)
        np.copyto(groups, x.view("V16").T)
        rows = groups.view(np.float32).reshape(size // 4, n * 4)
        ends = []
        for reduce in (np.minimum.reduce, np.maximum.reduce):
            quads = reduce(rows, axis=0).reshape(n, 4)
            ends.append(reduce(np.ascontiguousarray(quads.T), axis=0)[:, None])
        return ends[0], ends[1]

    def peak(self, x: Any, low: Any, high: Any) -> Any:
        lowest = np.negative(low)
        peak = np.where(lowest > high, low, high)
        tied = np.flatnonzero(lowest == high)
        if tied.size:
            peak[tied] += np.float32(0)  # turns -0 into +0
            tied = tied[high[tied, 0] > 0]
            blocks = x[tied]
            first = np.argmax(np.abs(blocks) == high[tied], axis=1)
            peak[tied, 0] = blocks[np.arange(tied.size), first]
        return peak

    def first_low(self, x: Any, low: Any) -> Any:
        zero = np.flatnonzero(low == 0)
        if zero.size:
            blocks = x[zero]
            low[zero, 0] = blocks[np.arange(zero.size), np.argmax(blocks == 0, axis=1)]
        return low

    def magnitude(self, low: Any, high: Any) -> Any:
        return np.maximum(np.abs(low), np.abs(high))

    def divide(self, x: Any, by: Any) -> Any:
        return np.divide(x, by, dtype=np.float32)

    def inverse(self, scale: Any) -> Any:
        inverse = np.float32(1) / scale
        if not scale.all():
            inverse[scale == 0] = 0
        return inverse

    def broken(self, low: Any, high: Any) -> Any:
        if math.isfinite(low.min()) and math.isfinite(high.max()):  # a NaN is both ends of its block
            return None
        return ~(np.isfinite(low) & np.isfinite(high))

    def where(self, mask: Any, x: Any, y: Any) -> Any:
        return np.where(mask, x, y)

    # -- codes --

    def codes(self, x: Any, low: Any | None, factor: Any, offset: float, top: int) -> Any:
        y = self._buffer("scratch", x.shape, np.float32)
        if low is None:
            np.multiply(x, factor, out=y)
        else:
            np.subtract(x, low, out=y)
            np.multiply(y, factor, out=y)
        # Undefined are 0 * inf and what overflowed: a factor did, or max - min did and left a factor of 0.
        if not np.isfinite(factor).all() or (low is not None and not factor.all()):
            y[~np.isfinite(np.add(y, np.float32(offset)))] = -offset
        codes = self._buffer("codes", x.shape, np.uint8)
        np.add(y, np.float32(offset), out=codes, casting="unsafe")
        # From a whole array: NumPy's minimum with a single number is not vectorized.
        return np.minimum(codes, self._filled("tops", x.shape, np.array(top, np.uint8)), out=codes)

    def signed_codes(self, x: Any, factor: Any) -> Any:
        y = self._buffer("scratch", x.shape, np.float32)
        nudge = self._buffer("nudge", x.shape, np.uint32)
        np.multiply(x, factor, out=y)
        if not np.isfinite(factor).all():
            y[~np.isfinite(y)] = 0
        np.bitwise_and(y.view(np.uint32), _SIGN, out=nudge)
        np.bitwise_or(nudge, _HALF_BITS, out=nudge)
        codes = self._buffer("signed_codes", x.shape, np.int8)
        return np.add(y, nudge.view(np.float32), out=codes, casting="unsafe")

    def nearest(self, x: Any, table: npt.NDArray[np.uint8]) -> Any:
        y = np.fmin(x, np.float32(127.5))  # fmin and fmax ignore a NaN
        np.fmax(y, np.float32(-128), out=y)
        np.multiply(y, np.float32(2), out=y)
        np.floor(y, out=y)
        np.add(y, np.float32(256), out=y)
        return np.take(table, y.astype(np.intp))

    def lookup(self, table: npt.NDArray[np.float32], codes: Any) -> Any:
        return np.take(table, codes)

    def columns(self, x: Any) -> Any:
        return np.ascontiguousarray(x.T)

    def sum_rows(self, x: Any) -> Any:
        # Not np.sum: its order of additions depends on the shape.
        total = x[0].copy()
        for row in x[1:]:
            np.add(total, row, out=total)
        return total

    # -- bytes --

    def nibbles(self, codes: Any) -> Any:
        halves = codes.view("V16")
        packed = self._buffer("nibbles", (len(codes), 16), np.uint8)
        low = self._buffer("nibbles.low", (len(codes), 16), np.uint8)
        np.copyto(low.view("V16"), halves[:, :1])
        np.copyto(packed.view("V16"), halves[:, 1:])
        # Eight codes at a time; bits above the fourth are masked, so that none reaches its neighbour.
        words, low_words = packed.view(np.uint64), low.view(np.uint64)
        np.bitwise_and(words, _LOW_NIBBLES, out=words)
        np.left_shift(words, np.uint64(4), out=words)
        np.bitwise_and(low_words, _LOW_NIBBLES, out=low_words)
        np.bitwise_or(words, low_words, out=words)
        return packed

    def from_nibbles(self, packed: Any) -> Any:
        codes = self._buffer("from_nibbles", (len(packed), 32), np.uint8)
        np.copyto(codes.view("V16"), packed.view("V16"))  # every byte twice, 16 places apart
        words = codes.view(np.uint64)
        np.right_shift(words, self._filled("shifts", words.shape, _NIBBLE_SHIFTS), out=words)
        np.bitwise_and(words, _LOW_NIBBLES, out=words)
        return codes

    def levels(self, packed: Any, table: npt.NDArray[np.int8]) -> Any:
        # One look-up for the two codes of a byte; the 16 bits it gives part afterwards.
        pairs = np.take(_pairs(table.tobytes()), packed)
        levels = self._buffer("levels", (len(packed), 32), np.int8)
        np.copyto(levels.view("V16")[:, :1], pairs.astype(np.uint8).view("V16"))
        np.right_shift(pairs, np.uint16(8), out=pairs)
        np.copyto(levels.view("V16")[:, 1:], pairs.astype(np.uint8).view("V16"))
        return levels

    def fifth_bits(self, codes: Any) -> Any:
        return np.packbits((codes & np.uint8(16)).reshape(-1), bitorder="little").reshape(-1, 4)

    def with_fifth_bits(self, codes: Any, packed: Any) -> Any:
        words = np.ascontiguousarray(packed.view("V4")).view(np.uint8)
        bits = np.unpackbits(words.reshape(-1), bitorder="little").view(np.uint64).reshape(-1, 4)
        np.left_shift(bits, np.uint64(4), out=bits)
        np.bitwise_or(codes.view(np.uint64), bits, out=codes.view(np.uint64))
        return codes

    def half(self, x: Any) -> Any:
        halves = x.astype("<f2")
        nan = np.isnan(x)
        if nan.any():
            halves[nan] = np.copysign(np.float16("nan"), x[nan])
        return halves.view(np.uint8)

    def from_half(self, packed: Any) -> Any:
        return packed.view("<f2").astype(np.float32)

    def bfloat(self, x: Any) -> Any:
        bits = x.view(np.uint32)
        y = np.right_shift(bits, np.uint32(16))
        np.bitwise_and(y, np.uint32(1), out=y)
        np.add(y, np.uint32(0x7FFF), out=y)
        np.add(y, bits, out=y)
        np.right_shift(y, np.uint32(16), out=y)
        halves = y.astype("<u2")
        nan = np.isnan(x)
        if nan.any():
            halves[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(64)
        return halves.view(np.uint8)

    def from_bfloat(self, packed: Any) -> Any:
        bits = packed.view("<u2").astype(np.uint32)
        np.left_shift(bits, np.uint32(16), out=bits)
        return bits.view(np.float32)

    def float_bytes(self, x: Any) -> Any:
        return x.astype("<f4", copy=False).view(np.uint8)

    def from_float_bytes(self, packed: Any) -> Any:
        return packed.view("<f4")

    def int8(self, packed: Any) -> Any:
        return packed.view(np.int8)

    def bytes(self, codes: Any) -> Any:
        return codes.view(np.uint8)

    def join(self, out: Any, *fields: Any) -> None:
        start = 0
        for field in fields:
            length = field.shape[1]
            # One record per block: many times faster than copying rows of a few bytes.
            np.copyto(_records(out, start, length), field.view(f"V{length}")[:, 0])
            start += length

    def split(self, packed: Any, *lengths: int) -> list[Any]:
        ends = accumulate(lengths)
        return [packed[:, end - length : end] for end, length in zip(ends, lengths, strict=True)]

    def write(self, out: Any, codes: Any, minus: int, factor: Any, plus: Any | None = None) -> None:
        if minus:
            codes = np.subtract(codes.view(np.int8), np.int8(minus), out=codes.view(np.int8))
        np.multiply(codes, factor, out=out, dtype=np.float32)
        if plus is not None:
            np.add(out, plus, out=out)


def _records(packed: npt.NDArray[np.uint8], start: int, length: int) -> npt.NDArray[np.void]:
    """Return ``length`` bytes from ``start`` on of every row of ``packed``, contiguous, as records (n,)."""
    return np.ndarray((len(packed),), f"V{length}", packed, offset=start, strides=(packed.shape[1],))


@cache
def _pairs(table: bytes) -> npt.NDArray[np.uint16]:
    """Return uint16 (256,): for two codes in a byte, the lower one's ``table`` entry below the other's."""
    entries, both = np.frombuffer(table, np.uint8).astype(np.uint16), np.arange(256)
    pairs: npt.NDArray[np.uint16] = entries[both & 15] | entries[both >> 4] << np.uint16(8)
    return pairs
