from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvquant.errors import UsageError
from kvquant.units import format_n_bytes, parse_n_bytes


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
    ],
)
def test_parse(text: str, n_bytes: int) -> None:
    assert parse_n_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e9", "1,5MB", "4TB", "٣MB", "1 2", "0x10", "nan"])
def test_parse_rejects(text: str) -> None:
    with pytest.raises(UsageError, match="not a byte count"):
        parse_n_bytes(text)


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
