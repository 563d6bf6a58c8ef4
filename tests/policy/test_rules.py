"""Policies built in code, and what an error shows."""

from __future__ import annotations

import pytest

from kvquant.errors import PolicyError
from kvquant.formats.registry import CACHE_TYPES
from kvquant.policy import (
    Counting,
    Policy,
    Rule,
    parse_policy,
    policy_from_layers,
    preset_text,
)


def _error(text: str) -> str:
    with pytest.raises(PolicyError) as raised:
        parse_policy(text, CACHE_TYPES)
    return str(raised.value)


def test_error_points_at_the_column_and_names_the_types() -> None:
    assert _error("0-3:q8_0,4-7:q40") == (
        "policy, column 14: unknown type 'q40', did you mean q4_0? "
        "known: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1, tq3, tq2, k5x3, k4x2\n"
        "  0-3:q8_0,4-7:q40\n"
        "               ^"
    )


def test_error_at_the_end_of_the_text() -> None:
    assert _error("0-3:") == "policy, column 5: expected a type, found the end\n  0-3:\n      ^"


def test_error_without_a_near_name_gives_no_hint() -> None:
    assert "did you mean" not in _error("0:zzzz")


@pytest.mark.parametrize("at", [0, 30, 200, 399])
def test_long_text_is_cut_around_the_caret(at: int) -> None:
    text = "0:f16," * 400
    broken = text[: 6 * at] + "!" + text[6 * at :]
    first, shown, caret = _error(broken).split("\n")
    assert first.startswith(f"policy, column {6 * at + 1}: ")
    assert len(shown) < 90
    assert shown[len(caret) - 1] == "!"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0\u201310:q8_0", "found U+2013 EN DASH: write -"),
        ("0\u221210:q8_0", "found U+2212 MINUS SIGN: write -"),
        ("0:q8_0,\u00a01:q4_0", "found U+00A0 NO-BREAK SPACE: write a plain blank"),
        ("\ufeff0:q8_0", "found U+FEFF ZERO WIDTH NO-BREAK SPACE: leave it out"),
        ("\u2018q8_0\u2019", "found U+2018 LEFT SINGLE QUOTATION MARK: leave out the quotes"),
        ("'q8_0'", "': leave out the quotes"),
        ("0:q8_0;1:q4_0", "found ';': write ,"),
        ("0=q8_0", "found '=': a colon joins layers and types"),
        ("0..3:q8_0", "found '.': a range is written 0-10"),
        ("@policy.txt", "found '@': a file stands alone, as in --policy @policy.txt"),
        ("0:\nq8_0", "line 1, column 3: expected a type, found a line break: a rule has no blanks"),
        ("0:\tq8_0", "found a tab: a rule has no blanks"),
        ("0 :q8_0", "found a blank: a rule has no blanks"),
        ("-2-:q8_0", "found '-': the last two layers are last2"),
        ("kv-2-:q8_0", "found '-': the last two layers are kvlast2"),
        ("q8_0,31:f16", "found 'q': q8_0 stands alone or behind layers, as in rest:q8_0"),
        ("0:q8_0,*:k=f16", "name each layer once; rest:k=f16 names those no other rule does"),
        ("0:q8_0\x00", "found U+0000"),
    ],
)
def test_what_people_type_or_paste_is_named_with_what_to_write(text: str, words: str) -> None:
    assert words in _error(text)


def test_the_line_at_fault_is_shown() -> None:
    assert _error("0:q8_0, # \u00e9\r\n1:q9, \r\n") == (
        "policy, line 2, column 3: unknown type 'q9'; "
        "known: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1, tq3, tq2, k5x3, k4x2\n  1:q9, \n    ^"
    )


def test_unprintable_characters_keep_the_caret_in_place() -> None:
    _, shown, caret = _error("\t0:f16,\x1b[31m1:f16").split("\n")
    assert shown == "   0:f16,?[31m1:f16"
    assert shown[len(caret) - 1] == "?"


def test_a_number_of_any_length_is_an_error_not_a_crash() -> None:
    assert "too large" in _error("9" * 10_000 + ":f16")
    assert str(parse_policy("0" * 10_000 + "7:f16", CACHE_TYPES)) == "7:f16"


def test_as_many_rules_as_there_are_layers_read_in_linear_time() -> None:
    text = ",".join(f"{layer}:{'f16' if layer % 2 else 'q8_0'}" for layer in range(65536))
    assert len(parse_policy(text, CACHE_TYPES).rules) == 65536


def test_policy_from_layers_is_the_shortest_text() -> None:
    types = [(layer, "q8_0", "q8_0" if layer < 11 else "q4_0") for layer in range(32)]
    assert str(policy_from_layers(types)) == "0-10:q8_0,11-31:k=q8_0/v=q4_0"


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ([], "empty"),
        ([(Counting.LAST, 0, 3, "f16", "f16")], "number"),
        ([(Counting.LAST, 1, None, "f16", "f16")], "range"),
        ([(Counting.REST, 1, None, "f16", "f16")], "range"),
        ([(Counting.LAYERS, -1, 3, "f16", "f16")], "number"),
        ([(Counting.LAYERS, 0, 65536, "f16", "f16")], "number"),
        ([(Counting.LAYERS, 3, 2, "f16", "f16")], "range"),
        ([(Counting.LAYERS, 3, 3, None, None)], "syntax"),
        ([(Counting.LAYERS, 3, 3, "f16", None), (Counting.LAYERS, 3, 3, None, "f16")], "overlap"),
    ],
)
def test_rules_built_in_code_keep_the_rules(
    rules: list[tuple[Counting, int, int | None, str | None, str | None]], code: str
) -> None:
    with pytest.raises(PolicyError) as raised:
        Policy(tuple(Rule(*rule) for rule in rules))
    assert raised.value.code == code


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_every_type_is_a_preset(name: str) -> None:
    assert str(parse_policy(f" {name.upper()} ", CACHE_TYPES)) == f"*:{name}"


def test_named_presets() -> None:
    assert str(parse_policy("Hybrid", CACHE_TYPES)) == "0-10:q8_0,11-31:q4_0"
    assert preset_text("k8v4", CACHE_TYPES) == "*:k=q8_0/v=q4_0"
    assert str(parse_policy("7:f16", CACHE_TYPES)) == "7:f16"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("q9_0", "preset"),
        ("KV0", "syntax"),
        ("\u212a8v4", "syntax"),
        ("7", "syntax"),
        ("", "empty"),
        ("a b", "syntax"),
    ],
)
def test_neither_preset_nor_policy(text: str, code: str) -> None:
    with pytest.raises(PolicyError) as raised:
        parse_policy(text, CACHE_TYPES)
    assert raised.value.code == code


def test_variants_of_a_family_are_types() -> None:
    text = "0:tq_mse_4b-nc,1:k=TQ_PROD_3B-qr-s7/v=q4_0"
    assert str(parse_policy(text)) == "0:tq_mse_4b-nc,1:k=tq_prod_3b-qr-s7/v=q4_0"
    assert str(parse_policy("tq_mse_4b-nc")) == "*:tq_mse_4b-nc"
    with pytest.raises(PolicyError, match="unknown type 'tq_mse_4b-zz', did you mean tq_mse_4b") as raised:
        parse_policy("0:tq_mse_4b-zz")
    assert raised.value.code == "type"


def test_a_reader_without_hyphens_in_its_names_takes_none() -> None:
    with pytest.raises(PolicyError) as raised:
        parse_policy("0:q8_0-1", CACHE_TYPES)
    assert (raised.value.code, raised.value.column) == ("syntax", 7)
