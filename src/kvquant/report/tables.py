"""Columns of text, and how the numbers of an analysis are written in text, figures and pages alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from kvquant.analysis.verdict import percent

UNKNOWN = "?"
"""What stands for a number that is not known; never 0."""

GAP = "  "


def printable(text: str) -> str:
    """Return ``text`` with a replacement character for each that has no shape of its own.

    Control characters, and those that turn the direction of what follows, could make a line look like
    another. Line breaks and tabs stay.
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") else "\ufffd"
        for c in text
    )


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return aligned lines; the columns in ``left`` are flush left, the others flush right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return GAP.join(cells).rstrip()

    return "\n".join(line(row) for row in (header, *rows))


def decibels(value: float | None, exact: bool) -> str:
    """A normalised error in dB with one decimal; "exact" where there is no error at all."""
    if value is None:
        return "exact" if exact else UNKNOWN
    return f"{value:.1f}"


def share(value: float | None) -> str:
    """A relative error in percent, two significant digits, without the sign."""
    return UNKNOWN if value is None else percent(value).removesuffix(" %")


def small(value: float | None) -> str:
    """A divergence or logit error with two significant digits."""
    if value is None:
        return UNKNOWN
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-3 else f"{value:.2g}"
