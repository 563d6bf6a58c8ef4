from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvquant.errors import UsageError
from kvquant.units import format_n_bytes, parse_budget, parse_n_bytes, parse_n_tokens


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("0", 0),
        ("1024", 1024),
        ("256MiB", 256 * 1024**2),
        ("4GB", 4 * 10**9),
        (" 1.5 kib ", 1536),
        ("0.1GiB", 107374182),
        ("9007199254740993", 9007199254740993),
        ("4G", 4 << 30),
        ("4g", 4 << 30),
        ("512M", 512 << 20),
        ("1.5 k", 1536),
        (".5GiB", 1 << 29),
    ],
)
def test_parse(text: str, n_bytes: int) -> None:
    assert parse_n_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e9", "1,5MB", "4TB", "٣MB", "1 2", "0x10", "nan"])
def test_parse_rejects(text: str) -> None:
    with pytest.raises(UsageError, match="not a byte count"):
        parse_n_bytes(text)


ANY_NUMBER = st.one_of(
    st.text(max_size=12),
    st.text("0123456789.,kKmMgGiIbBxX% _-", max_size=12),
    st.sampled_from(["9" * 5000, "0." + "3" * 5000, "1e9", "\u0663", "nan", "inf", "-0"]),
)


@given(ANY_NUMBER)
def test_any_text_is_a_number_or_one_line(text: str) -> None:
    for parse in (parse_n_bytes, parse_n_tokens, parse_budget):
        try:
            found = parse(text)
        except UsageError as error:
            assert "\n" not in str(error)
        else:
            assert found >= 0
            assert (parse is parse_budget) or isinstance(found, int)


@given(st.integers(0, 1 << 40), st.sampled_from("kmgKMG"))
def test_a_letter_is_a_power_of_1024(count: int, letter: str) -> None:
    factor = 1024 ** ("kmg".index(letter.lower()) + 1)
    assert parse_n_bytes(f"{count}{letter}") == parse_n_bytes(f"{count} {letter}iB") == count * factor
    if letter in "gG":
        with pytest.raises(UsageError, match="not a number of tokens"):
            parse_n_tokens(f"{count}{letter}")
    else:
        assert parse_n_tokens(f"{count}{letter}") == count * factor


@pytest.mark.parametrize(
    ("text", "budget"),
    [("0.35x", 0.35), ("35%", 0.35), (" 2X ", 2.0), (".5x", 0.5), ("160MiB", 160 << 20), ("1024", 1024)],
)
def test_a_budget_is_bytes_or_a_share(text: str, budget: int | float) -> None:
    assert parse_budget(text) == budget
    assert type(parse_budget(text)) is type(budget)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("0.35", "0.35x is a share of f16, 0.35GiB a size"),
        (".35", "0.35x is a share of f16"),
        ("1.5", "1.5x is a share of f16"),
        ("0x", "leaves nothing"),
        ("0", "leaves nothing"),
        ("1,5GiB", "write 1.5GiB"),
        ("1,024", "leave out the separators: 1024"),
        ("lots", "a share of f16 such as 0.35x"),
    ],
)
def test_a_budget_that_is_none_says_what_to_write(text: str, advice: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_budget(text)
    assert advice in str(raised.value)


@given(st.integers(0, 2**62))
@example(1023)
@example(1024)
@example(1024**2 - 1)
def test_format_keeps_four_digits(n_bytes: int) -> None:
    text = format_n_bytes(n_bytes)
    assert parse_n_bytes(text) == pytest.approx(n_bytes, rel=0.005)


def test_format() -> None:
    assert format_n_bytes(140 * 1024**2) == "140.00 MiB"
    assert format_n_bytes(1023) == "1023 B"
