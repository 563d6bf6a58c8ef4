"""How a policy error shows what was written: a caret, names of characters, what to write instead."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

_WINDOW = 72
"""How many characters of a long text are shown around the caret."""

_LONGEST_PIECE = 32
"""How many characters of a quoted piece are shown."""

_NAMES = {" ": "a blank", "\t": "a tab", "\n": "a line break", "\r": "a line break"}

_INSTEAD = (
    ("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "write -"),
    ("'\"`\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb", "leave out the quotes"),
    (" \t\n\r", "a rule has no blanks"),
    ("\ufeff\u200b\u200c\u200d\u2060", "leave it out"),
    (";\uff0c\uff1b\u3001", "write ,"),
    ("\uff1a", "write :"),
    ("\u2217\uff0a\u00d7", "write *"),
    ("=", "a colon joins layers and types, as in 0:k=q8_0/v=q4_0"),
    (".\u2026", "a range is written 0-10"),
    ("@", "a file stands alone, as in --policy @policy.txt"),
)
"""Characters that people type or paste into a policy, and what to do about them."""


def shown(piece: str) -> str:
    """``piece`` in quotes, cut when long, with what cannot be printed replaced."""
    cut = piece if len(piece) <= _LONGEST_PIECE else f"{piece[:_LONGEST_PIECE]}..."
    return f"'{_printable(cut)}'"


def character(found: str, hint: str | None = None) -> str:
    """A character by name where it cannot be seen, and what to write instead where that is known."""
    if found in _NAMES:
        name = _NAMES[found]
    elif found.isascii() and found.isprintable():
        name = f"'{found}'"
    else:
        name = f"U+{ord(found):04X} {unicodedata.name(found, '')}".rstrip()
    hint = hint or next((hint for characters, hint in _INSTEAD if found in characters), None)
    if hint is None and found.isspace():
        hint = "write a plain blank"
    return name if hint is None else f"{name}: {hint}"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that ``name`` is no ``what``, with the nearest known name when one is near, and all known names."""
    names = list(known)
    near = get_close_matches(name[:_LONGEST_PIECE], names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]}?" if near else ";"
    return f"unknown {what} {shown(name)}{hint} known: {', '.join(names)}"


def place(text: str, at: int) -> tuple[int, int]:
    """The 1-based line and column of the character at index ``at`` of ``text``."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def pointed(text: str, at: int) -> str:
    """Two lines: the line of ``text`` that holds index ``at`` (cut when long), a caret under it."""
    _, column = place(text, at)
    line = text[at - column + 1 :].partition("\n")[0].rstrip("\r")
    begin = max(0, min(column - 1 - _WINDOW // 2, len(line) - _WINDOW))
    window = line[begin : begin + _WINDOW]
    before = "..." if begin > 0 else ""
    after = "..." if begin + _WINDOW < len(line) else ""
    caret = " " * (len(before) + column - 1 - begin) + "^"
    return f"  {before}{_printable(window)}{after}\n  {caret}"


def _printable(text: str) -> str:
    """One visible character for each character, so that a caret below stays in place."""
    return "".join(c if c.isascii() and c.isprintable() else ("?" if c not in " \t" else " ") for c in text)
