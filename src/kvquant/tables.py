"""Tables of text, the same for a terminal, Markdown and a page, and how numbers are written in them.

A number that is not known is a question mark, never 0.
"""

from __future__ import annotations

import html
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvquant.units import format_n_bytes

UNKNOWN = "?"
"""What stands for a number that is not known."""

NONE = "–"
"""What stands where there is nothing to say, as for the change of the baseline against itself."""

GAP = "  "


@dataclass(frozen=True)
class Table:
    """A heading and rows of text. words: columns that are no numbers, flush left; the first always is."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = ()

    def is_word(self, column: int) -> bool:
        """Whether a column is flush left."""
        return column == 0 or column in self.words


def printable(text: str) -> str:
    """Return ``text`` with a replacement character for each that has no shape of its own.

    Control characters, and those that turn the direction of what follows, could make a line look like
    another. Line breaks and tabs stay.
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") else "\ufffd"
        for c in text
    )


def terminal_width() -> int | None:
    """Return how wide lines on standard output may be: COLUMNS, else the terminal's; None for a pipe."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def text(table: Table, width: int | None = None) -> str:
    """Return aligned lines, numbers flush right.

    Where they are wider than ``width`` (cells), numbers go without what stands behind them in brackets, and
    where that does not help each row is a block of its own, a line a cell.
    """
    plain = Table(_plain(table.head), tuple(map(_plain, table.rows)), table.words)
    lines = _aligned(plain)
    if width is not None and _widest(lines) > width:
        lines = _aligned(_without_brackets(plain))
    if width is not None and _widest(lines) > width and plain.rows:
        lines = _blocks(plain)
    return "\n".join(lines)


def _plain(row: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(printable(cell).split()) for cell in row)


def _aligned(table: Table) -> list[str]:
    rows = [table.head, *table.rows]
    widths = [max(cells(row[i]) for row in rows) for i in range(len(table.head))]
    return [
        GAP.join(
            _padded(cell, width, table.is_word(i))
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _padded(cell: str, width: int, is_word: bool) -> str:
    blanks = " " * (width - cells(cell))
    return cell + blanks if is_word else blanks + cell


def _without_brackets(table: Table) -> Table:
    def short(row: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            cell if table.is_word(i) or not cell.endswith(")") else cell.partition(" (")[0]
            for i, cell in enumerate(row)
        )

    return Table(table.head, tuple(map(short, table.rows)), table.words)


def _blocks(table: Table) -> list[str]:
    first, *names = table.head
    pad = max((cells(name) for name in names), default=0)
    lines: list[str] = []
    for row in table.rows:
        lines += ["", f"{first} {row[0]}".strip()] if lines else [f"{first} {row[0]}".strip()]
        lines += [
            f"{GAP}{_padded(name, pad, True)}{GAP}{cell}"
            for name, cell in zip(names, row[1:], strict=True)
            if cell
        ]
    return lines


def _widest(lines: Iterable[str]) -> int:
    return max(map(cells, lines), default=0)


def cells(line: str) -> int:
    """Return how many cells of a terminal a line takes: wide characters take two."""
    if line.isascii():
        return len(line)
    from rich.cells import cell_len  # only here: nearly every line is ASCII

    return cell_len(line)


_SPECIAL = re.compile(r"([\\`*{}\[\]<>|#~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
"""Inside a word an underscore is only an underscore."""

_LINE_START = re.compile(r"^(\d*)([-+=.)])(?=[-+=\s]|$)")
"""What would make a list, a rule or a heading of a line."""


def escape_markdown(line: str) -> str:
    """Return ``line`` as Markdown that shows it on one line, whatever is in it."""
    escaped = _SPECIAL.sub(r"\\\1", " ".join(printable(line).split()))
    return _LINE_START.sub(r"\1\\\2", escaped)


def markdown(table: Table) -> str:
    """Return a Markdown table, numbers flush right."""
    rule = "|".join("---" if table.is_word(i) else "---:" for i in range(len(table.head)))

    def line(row: Iterable[str]) -> str:
        return f"| {' | '.join(escape_markdown(cell) for cell in row)} |"

    return "\n".join([line(table.head), f"|{rule}|", *map(line, table.rows)])


def escape_html(line: str) -> str:
    """Return ``line`` as HTML that shows it, whatever is in it."""
    return html.escape(printable(line))


def class_attribute(name: str, applies: bool = True) -> str:
    """Return the attribute of an HTML element, or nothing where it does not apply."""
    return f' class="{name}"' if applies else ""


def html_table(table: Table, caption: str, marked: Sequence[int] = ()) -> str:
    """Return an HTML table that scrolls by itself where it is wider than the page. marked: rows to stress."""

    def line(row: Sequence[str], is_marked: bool) -> str:
        found = "".join(
            f"<td{class_attribute('word', table.is_word(i))}>{_two_lines(row[i])}</td>"
            for i in range(1, len(row))
        )
        name = f'<th scope="row">{escape_html(row[0])}</th>'
        return f"<tr{class_attribute('policy', is_marked)}>{name}{found}</tr>"

    lines = "\n".join(line(row, i in marked) for i, row in enumerate(table.rows))
    return _html(table, lines, caption)


def html_cards(table: Table, caption: str, tones: Sequence[str | None]) -> str:
    """Return an HTML table whose rows become cards on a phone.

    tones: how the second column of each row is coloured: good, caution, bad, or not.
    """

    def line(row: Sequence[str], tone: str | None) -> str:
        kinds = {1: class_attribute(tone or "", tone is not None)}
        found = "".join(
            f'<td data-name="{escape_html(table.head[i])}"{class_attribute("word", table.is_word(i))}>'
            f"<span{kinds.get(i, '')}>{_two_lines(row[i])}</span></td>"
            for i in range(1, len(row))
        )
        return f'<tr><th scope="row">{_two_lines(row[0])}</th>{found}</tr>'

    lines = "\n".join(line(row, tone) for row, tone in zip(table.rows, tones, strict=True))
    return _html(table, lines, caption, kind=' class="cards"')


def _two_lines(cell: str) -> str:
    """What stands in brackets at the end, such as an interval, in smaller print beside or below the rest."""
    value, bracket, rest = cell.removesuffix(")").partition(" (")
    return f"{escape_html(value)}<small>{escape_html(rest)}</small>" if bracket else escape_html(cell)


def _html(table: Table, lines: str, caption: str, kind: str = "") -> str:
    header = "".join(
        f'<th scope="col"{class_attribute("word", i in table.words)}>{escape_html(name)}</th>'
        for i, name in enumerate(table.head)
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape_html(caption)}" tabindex="0"><table{kind}>'
        f"<caption>{escape_html(caption)}</caption><thead><tr>{header}</tr></thead>\n"
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def points(value: float | None) -> str:
    """A change of a share in percentage points, with its sign."""
    return UNKNOWN if value is None else f"{100 * value:+.1f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share in percent, one decimal."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def short_percent(ratio: float) -> str:
    """A relative error in percent, two significant digits."""
    value = float(f"{100 * ratio:.2g}")
    if value == 0 or value >= 10:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


def share(value: float | None) -> str:
    """A relative error as `short_percent` writes it, without the sign: for columns with it in the head."""
    return UNKNOWN if value is None else short_percent(value).removesuffix(" %")


def times(value: float | None) -> str:
    """A ratio."""
    return UNKNOWN if value is None else f"{value:.2f}x"


def number(value: float | None) -> str:
    """A speed, three significant digits."""
    return UNKNOWN if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def small(value: float | None) -> str:
    """A divergence or logit error with two significant digits."""
    if value is None:
        return UNKNOWN
    return "0" if value == 0 else f"{value:.1e}" if value < 1e-3 else f"{value:.2g}"


def decibels(value: float | None, exact: bool) -> str:
    """A normalised error in dB with one decimal; "exact" where there is no error at all."""
    if value is None:
        return "exact" if exact else UNKNOWN
    return f"{value:.1f}"


def seconds(value: float | None) -> str:
    """A time, in milliseconds below a second."""
    return UNKNOWN if value is None else f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def clock(value: float) -> str:
    """A time that is left, as hours, minutes and seconds."""
    minutes, rest = divmod(round(value), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def n_bytes(value: int | None) -> str:
    """A size."""
    return UNKNOWN if value is None else format_n_bytes(value)


def with_interval(shown: str, interval: Sequence[float] | None, write: Callable[[float | None], str]) -> str:
    """A number with its interval behind it, alone where that is unknown."""
    return shown if interval is None else f"{shown} ({write(interval[0])} to {write(interval[1])})"
