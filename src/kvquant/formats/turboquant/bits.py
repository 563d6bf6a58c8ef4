"""Codes of b bits to bytes and back: code i owns bits [i·b, (i+1)·b) of a little-endian bit string."""

from __future__ import annotations

from kvquant.formats.arrays import Array, empty

_GROUP = 8  # that many codes fill whole bytes, whatever the number of bits


def n_code_bytes(n_codes: int, bits: int) -> int:
    """Return the bytes that ``n_codes`` codes of ``bits`` bits take, the last one padded with zero bits."""
    return -(-n_codes * bits // 8)


def pack(codes: Array, bits: int) -> Array:
    """Pack ``codes``, uint8 (n_codes, n) below 2^bits, into uint8 (n_code_bytes, n); columns stay apart."""
    n_codes, n = codes.shape
    groups = _padded(codes, _GROUP).reshape(-1, _GROUP, n)
    out = empty((len(groups), bits, n), "uint8", codes)
    for byte in range(bits):
        out[:, byte] = _gather([(groups[:, i], i * bits - 8 * byte) for i in range(_GROUP)], bits)
    return out.reshape(-1, n)[: n_code_bytes(n_codes, bits)]


def unpack(packed: Array, bits: int, n_codes: int) -> Array:
    """Undo `pack`: uint8 (n_code_bytes, n) to codes, uint8 (n_codes, n)."""
    n = packed.shape[1]
    groups = _padded(packed, bits).reshape(-1, bits, n)
    out = empty((len(groups), _GROUP, n), "uint8", packed)
    for i in range(_GROUP):
        parts = [(groups[:, byte], 8 * byte - i * bits) for byte in range(bits)]
        out[:, i] = _gather(parts, 8) & ((1 << bits) - 1)
    return out.reshape(-1, n)[:n_codes]


def _gather(parts: list[tuple[Array, int]], n_part_bits: int) -> Array:
    """Return the OR of the parts, each moved up by its shift (down when negative), in bits 0..7."""
    shifted = [
        part << shift if shift >= 0 else part >> -shift for part, shift in parts if -n_part_bits < shift < 8
    ]
    total = shifted[0]
    for part in shifted[1:]:
        total = total | part
    return total


def _padded(rows: Array, multiple: int) -> Array:
    """Return ``rows`` (m, n) with zero rows added up to a multiple; the same array when none are missing."""
    missing = -len(rows) % multiple
    if not missing:
        return rows
    out = empty((len(rows) + missing, rows.shape[1]), "uint8", rows)
    out[: len(rows)] = rows
    out[len(rows) :] = 0
    return out
