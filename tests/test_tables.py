"""Tables: aligned, within the width, the same cells everywhere, and nothing in them acts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.tables import (
    Table,
    cells,
    clock,
    decibels,
    html_table,
    markdown,
    percent,
    points,
    seconds,
    share,
    small,
    terminal_width,
    text,
    times,
    with_interval,
)

SIMPLE = Table(("name", "n", "what"), (("x", "10", "a word"), ("long one", "1 (0 to 2)", "")), words=(2,))


def test_numbers_are_flush_right_and_words_flush_left() -> None:
    assert text(SIMPLE).splitlines() == [
        "name               n  what",
        "x                 10  a word",
        "long one  1 (0 to 2)",
    ]


def test_a_narrow_terminal_loses_brackets_first_and_then_gets_blocks() -> None:
    assert text(SIMPLE, 28) == text(SIMPLE, 300) == text(SIMPLE)
    assert text(SIMPLE, 22).splitlines() == ["name       n  what", "x         10  a word", "long one   1"]
    assert text(SIMPLE, 17).splitlines() == [
        "name x",
        "  n     10",
        "  what  a word",
        "",
        "name long one",
        "  n     1 (0 to 2)",
    ]


words = st.text(st.sampled_from("ab1 (),|*_`<>&\n\t\x1b\x00\u202e漢é"), max_size=9)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    n = draw(st.integers(1, 5))
    row = st.tuples(*[words] * n)
    return Table(draw(row), tuple(draw(st.lists(row, max_size=4))), tuple(draw(st.sets(st.integers(1, 5)))))


def check_text(shown: str, table: Table) -> None:
    """A line a row, all aligned by cells, and no character that could move anything."""
    lines = shown.split("\n")
    assert len(lines) == 1 + len(table.rows)
    assert not set(shown) & {"\x1b", "\x00", "\u202e", "\t"}
    width = max(map(cells, lines))
    last_is_word = table.is_word(len(table.head) - 1)
    rows = [table.head, *table.rows]
    for line, row in zip(lines, rows, strict=True):
        if not last_is_word and row[-1].split():
            assert cells(line) == width, "numbers of the last column end together"


@given(tables())
def test_any_cells_make_a_table(table: Table) -> None:
    check_text(text(table), table)


@pytest.mark.parametrize("broken", [lambda t: t + "\n", lambda t: t + "\x1b", lambda t: " " + t])
def test_the_check_of_text_notices(broken: object) -> None:
    table = Table(("a", "b"), (("x", "1"), ("y", "22")))
    with pytest.raises(AssertionError):
        check_text(broken(text(table)), table)  # type: ignore[operator]


@given(tables())
def test_markdown_and_html_have_every_cell(table: Table) -> None:
    lines = markdown(table).split("\n")
    assert len(lines) == 2 + len(table.rows)
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {len(table.head) + 1}
    page = html_table(table, "<caption>")
    assert page.count("<td") == len(table.rows) * (len(table.head) - 1)
    assert page.count("<th") - page.count("<thead") == len(table.head) + len(table.rows)
    assert not set(page) & {"\x1b", "\x00", "\u202e"} and "&lt;caption&gt;" in page


def test_the_width_is_that_of_columns_and_a_pipe_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal_width() is None
    for value, width in (("72", 72), ("0", None), ("wide", None)):
        monkeypatch.setenv("COLUMNS", value)
        assert terminal_width() == width


def test_wide_characters_take_two_cells() -> None:
    assert cells("漢字") == 4 and cells("é") == 1
    assert text(Table(("a", "b"), (("漢字", "1"), ("abc", "1")))).splitlines()[1:] == ["漢字  1", "abc   1"]


def test_numbers_in_tables() -> None:
    assert (decibels(None, True), decibels(None, False), decibels(-21.34, False)) == ("exact", "?", "-21.3")
    assert [share(x) for x in (None, 0.0, 0.00047, 0.0162, 0.2049, 3.21)] == [
        *("?", "0", "0.047", "1.6", "20", "320"),
    ]
    assert [small(x) for x in (None, 0.0, 1.23e-7, 0.0234, 1.23)] == ["?", "0", "1.2e-07", "0.023", "1.2"]
    assert [points(None), points(-0.0123), percent(None), percent(0.5)] == ["?", "−1.2", "?", "50.0 %"]
    assert [times(None), times(0.5), seconds(None), seconds(0.0312), clock(3725)] == [
        *("?", "0.50x", "?", "31 ms", "1:02:05"),
    ]
    assert (
        with_interval("1", None, times) == "1" and with_interval("1", (0, 2), times) == "1 (0.00x to 2.00x)"
    )
