"""`kvquant formats`: the table and its JSON form say the same, and what llama.cpp says."""

from __future__ import annotations

import json

import gguf
from click.testing import CliRunner

from kvquant.cli.formats import formats
from kvquant.errors import FormatError
from kvquant.formats.registry import CACHE_TYPES, UPSTREAM_TYPES, format_names


def entries(*arguments: str) -> dict[str, dict[str, object]]:
    done = CliRunner().invoke(formats, [*arguments, "--json"], catch_exceptions=False)
    return {entry["name"]: entry for entry in json.loads(done.stdout)["formats"]}


def test_every_format_is_listed_once() -> None:
    assert tuple(entries()) == format_names()
    assert {name for name, entry in entries().items() if entry["cache_type"]} == set(CACHE_TYPES)


def test_block_sizes_are_ggml_s() -> None:
    for name in UPSTREAM_TYPES:
        size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
        assert (entries()[name]["block_size"], entries()[name]["block_bytes"]) == size, name


def test_the_table_shows_what_json_says() -> None:
    lines = CliRunner().invoke(formats, catch_exceptions=False).stdout.splitlines()[1:]
    for line, entry in zip(lines, entries().values(), strict=True):
        mark = "*" if entry["name"] in UPSTREAM_TYPES else "+" if entry["cache_type"] else " "
        assert line.startswith(f"{mark} ")
        assert f" {entry['name']} " in line
        assert f" {entry['bits_per_value']:g} " in line
        assert f" {entry['block_size']} in {entry['block_bytes']} bytes " in line
        assert line.endswith(str(entry["source"]))


def test_head_dim_changes_only_what_takes_whole_heads() -> None:
    narrow, wide = entries("--head-dim", "80"), entries("--head-dim", "256")
    changed = {name for name in narrow if narrow[name] != wide[name]}
    assert changed == {name for name in narrow if name.startswith("tq_")}


def test_a_head_without_values() -> None:
    done = CliRunner().invoke(formats, ["--head-dim", "0"])
    assert isinstance(done.exception, FormatError)
