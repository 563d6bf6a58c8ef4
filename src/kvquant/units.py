"""Byte counts as people write and read them. Binary units only change the spelling, never the value."""

from __future__ import annotations

import re

from kvquant.errors import UsageError

_FACTORS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_N_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.ASCII)


def parse_n_bytes(text: str) -> int:
    """Return the number of bytes that ``text`` names, such as ``256MiB``, ``4GB`` or ``1024``.

    A fraction is rounded down to whole bytes. Raises UsageError for anything else.
    """
    match = _N_BYTES.fullmatch(text.strip().lower())
    if match is None or match[2] not in _FACTORS:
        raise UsageError(f"{text!r} is not a byte count; write a number with B, kB, MB, GB, KiB, MiB or GiB")
    whole, _, fraction = match[1].partition(".")
    factor = _FACTORS[match[2]]
    # Integer arithmetic: a float would lose bytes above 2**53.
    return int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)


def format_n_bytes(n_bytes: int) -> str:
    """Return ``n_bytes`` for people, two decimals in the largest binary unit that keeps it at least 1."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.2f} {unit}"
    return f"{n_bytes} B"
