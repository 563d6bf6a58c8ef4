"""Codes to bytes and back, in planes that a shift and a mask unpack many values at a time.

A plane holds w bits of every code, w a divisor of 8, and its values lie so that no shuffle is needed: of m
bytes, byte j holds values j, j + m, j + 2m, …, the first in its lowest bits. So the bytes shifted right by 0,
w, 2w, … and masked are the values in their order, a register at a time: for two bits of 64 values sixteen
bytes four times, for one bit of 64 values eight bytes eight times. q4_0's nibbles are the plane of four bits
of 32 values.
"""

from __future__ import annotations

from kvquant.formats.arrays import Array, empty


def n_plane_bytes(n_values: int, bits: tuple[int, ...]) -> int:
    """Return the bytes of ``n_values`` codes in planes of ``bits`` each."""
    return sum(n_values * width // 8 for width in bits)


def pack(codes: Array, bits: tuple[int, ...]) -> Array:
    """Pack ``codes``, uint8 (n_values, n), into uint8 (n_plane_bytes, n): planes one after another.

    bits: of each plane, the first holding the lowest bits of the codes. n_values: a multiple of 8.
    """
    n_values, n = codes.shape
    out = empty((n_plane_bytes(n_values, bits), n), "uint8", codes)
    start = taken = 0
    for width in bits:
        stop = start + n_values * width // 8
        fields = (codes >> taken & (1 << width) - 1).reshape(8 // width, stop - start, n)
        out[start:stop] = fields[0]
        for index in range(1, len(fields)):
            out[start:stop] |= fields[index] << index * width
        start, taken = stop, taken + width
    return out


def unpack(packed: Array, bits: tuple[int, ...], n_values: int) -> Array:
    """Undo `pack`: uint8 (n_plane_bytes, n) to codes, uint8 (n_values, n)."""
    n = packed.shape[1]
    codes = empty((n_values, n), "uint8", packed)
    codes[...] = 0
    start = taken = 0
    for width in bits:
        stop = start + n_values * width // 8
        fields = codes.reshape(8 // width, stop - start, n)  # a view: codes are row-major
        for index in range(len(fields)):
            fields[index] |= (packed[start:stop] >> index * width & (1 << width) - 1) << taken
        start, taken = stop, taken + width
    return codes
