"""How a policy error shows what was written: quoted pieces, the nearest known name, a caret."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_WINDOW = 72
"""How many characters of a long text are shown around the caret."""

_LONGEST_PIECE = 32
"""How many characters of a quoted piece are shown."""


def shown(piece: str) -> str:
    """``piece`` in quotes, cut when long, with what cannot be printed replaced."""
    cut = piece if len(piece) <= _LONGEST_PIECE else f"{piece[:_LONGEST_PIECE]}..."
    return f"'{_printable(cut)}'"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that ``name`` is no ``what``, with the nearest known name when one is near, and all known names."""
    names = list(known)
    near = get_close_matches(name[:_LONGEST_PIECE], names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]}?" if near else ";"
    return f"unknown {what} {shown(name)}{hint} known: {', '.join(names)}"


def pointed(text: str, column: int) -> str:
    """Two lines: the text (a window of it when long) and a caret under 1-based ``column``."""
    begin = max(0, min(column - 1 - _WINDOW // 2, len(text) - _WINDOW))
    window = text[begin : begin + _WINDOW]
    before = "..." if begin > 0 else ""
    after = "..." if begin + _WINDOW < len(text) else ""
    caret = " " * (len(before) + column - 1 - begin) + "^"
    return f"  {before}{_printable(window)}{after}\n  {caret}"


def _printable(text: str) -> str:
    """One visible character for each character, so that a caret below stays in place."""
    return "".join(c if c.isascii() and c.isprintable() else ("?" if c not in " \t" else " ") for c in text)
