"""Values to JSON and back, TOML to values: what fits is read, what does not is one line with its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.documents import (
    from_document,
    from_json,
    read_json,
    read_toml,
    schema,
    to_document,
    to_json,
    write_json,
)
from kvquant.errors import KVQuantError, UsageError


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Part:
    """A part."""

    size: int
    weight: float | None = None


@dataclass(frozen=True)
class Whole:
    """A whole."""

    parts: tuple[Part, ...]
    colour: Colour = Colour.RED
    named: Mapping[str, Part] = field(default_factory=dict)
    spare: Part | None = None


parts = st.builds(
    Part, st.integers(-(2**53), 2**53), st.none() | st.floats(allow_nan=False, allow_infinity=False)
)
wholes = st.builds(
    Whole,
    st.lists(parts).map(tuple),
    st.sampled_from(Colour),
    st.dictionaries(st.text(), parts),
    st.none() | parts,
)


@given(wholes)
def test_what_is_written_is_read_back(whole: Whole) -> None:
    assert from_json(Whole, to_json(whole), "here") == whole
    assert from_document(Whole, to_document(whole), "here", known_only=True) == whole


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "here: expected `object`, got `array`"),
        ({}, "here: object missing required field `parts`"),
        ({"parts": [{"size": "1"}]}, "here.parts[0].size: expected `int`, got `str`"),
        ({"parts": [{"size": True}]}, "here.parts[0].size: expected `int`, got `bool`"),
        ({"parts": [], "colour": "green"}, "here.colour: invalid enum value 'green'"),
        ({"parts": [], "color": "red"}, "here: unknown key 'color'; known: colour, named, parts, spare"),
        ({"parts": [{"size": 1, "x": 2}]}, "here.parts[0]: unknown key 'x'; known: size, weight"),
        (
            {"parts": [], "named": {"a": {"size": 1, "x": 2}}},
            "here.named.a: unknown key 'x'; known: size, weight",
        ),
        ({"parts": [], "spare": {"size": 1, "x": 2}}, "here.spare: unknown key 'x'; known: size, weight"),
    ],
)
def test_what_does_not_fit_is_one_line_with_its_place(document: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_document(Whole, document, "here", known_only=True, error=UsageError)
    assert str(caught.value) == message


def test_later_records_are_read() -> None:
    assert from_document(Whole, {"parts": [{"size": 1, "new": 2}], "newer": 3}, "here") == Whole((Part(1),))


@pytest.mark.parametrize("text", ["", "{", "\ud800", "[" * 100_000, b"\xff"])
def test_what_is_no_json_is_one_line(text: str | bytes) -> None:
    with pytest.raises(KVQuantError) as caught:
        from_json(Whole, text, "here")
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", Whole((Part(1),)))
    assert read_json(Whole, tmp_path / "a.json") == Whole((Part(1),))
    (tmp_path / "a.toml").write_text('colour = "blue"\n[[parts]]\nsize = 2\n')
    assert read_toml(Whole, tmp_path / "a.toml") == Whole((Part(2),), Colour.BLUE)
    with pytest.raises(KVQuantError, match=r"none\.json: cannot be read: No such file"):
        read_json(Whole, tmp_path / "none.json")
    (tmp_path / "a.toml").write_text("parts = [")
    with pytest.raises(KVQuantError, match="is not TOML"):
        read_toml(Whole, tmp_path / "a.toml")


def test_an_unknown_number_is_null_never_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json(Part(1, math.nan))


def test_schema_names_the_fields_and_what_they_are() -> None:
    document = schema(Whole)
    assert document["$defs"]["Part"]["required"] == ["size"]
    assert document["$defs"]["Part"]["description"] == "A part."
