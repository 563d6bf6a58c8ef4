"""Frozen dataclasses to JSON and back, TOML to frozen dataclasses, and JSON Schemas of them; by msgspec.

One dataclass is one document. Its fields are the keys, its type hints are what is accepted, its docstring is
the description in the schema. Readers pass over keys they do not know, so that an older kvquant reads a later
one's records; ``known_only`` is for what people write by hand, where such a key is a mistake.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from kvquant.errors import KVQuantError
from kvquant.files import write_atomic

T = TypeVar("T")

#: msgspec says where by a JSON path, `$.policies[0].kl`; people know the file and the key.
_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$(?P<path>.*)`)?$", re.DOTALL)


def to_document(value: Any) -> Any:
    """Return the JSON form of a value: dataclasses are objects, tuples lists, enums their value, paths text.

    Numbers that are not finite stay as they are; `to_json` refuses them.
    """
    import msgspec  # only here: most commands read and write no document

    return msgspec.to_builtins(value, enc_hook=_plain, str_keys=True)


def to_json(value: Any, *, indent: int | None = 1) -> str:
    """Return a value as JSON text. Raises ValueError for NaN and infinities: an unknown number is null."""
    return json.dumps(to_document(value), indent=indent, ensure_ascii=False, allow_nan=False)


def from_document(
    kind: type[T],
    document: object,
    where: str,
    *,
    known_only: bool = False,
    error: type[KVQuantError] = KVQuantError,
) -> T:
    """Build a ``kind`` (a dataclass, or any type of them) from its JSON form.

    where: what the document is called in messages, such as its path. known_only: refuse keys that ``kind``
    does not have. Raises ``error``, one line, with the path of the value at fault and what it must be.
    """
    import msgspec

    if known_only:
        _refuse_unknown(kind, document, where, error)
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as problem:
        raise error(f"{where}{_words(str(problem))}") from problem


def from_strings(
    kind: type[T], values: Mapping[str, str], where: str, *, error: type[KVQuantError] = KVQuantError
) -> T:
    """Build a ``kind`` (a dataclass of plain values) from texts, such as the row of a CSV file; empty ones
    are left to its defaults. Raises ``error``, one line, for an unknown key and for what is no such value.
    """
    import msgspec

    given = {key: value for key, value in values.items() if value != ""}
    _refuse_unknown(kind, given, where, error)
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as problem:
        raise error(f"{where}{_words(str(problem))}") from problem


def from_json(kind: type[T], text: str | bytes, where: str, *, error: type[KVQuantError] = KVQuantError) -> T:
    """Build a ``kind`` from JSON text. Raises ``error``, one line, when it is not JSON or does not fit."""
    return from_document(kind, parse_json(text, where, error=error), where, error=error)


def parse_json(text: str | bytes, where: str, *, error: type[KVQuantError] = KVQuantError) -> Any:
    """Parse JSON text. Raises ``error``, one line, for anything else, nesting without end included."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: is not JSON: {' '.join(str(problem).split())}") from problem


def read_json(kind: type[T], path: Path, *, error: type[KVQuantError] = KVQuantError) -> T:
    """Read a JSON file. Raises ``error``, one line, when it is missing, damaged or something else."""
    return from_json(kind, _bytes_of(path, error), str(path), error=error)


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file, whole, or leave the old one."""
    write_atomic(path, to_json(value) + "\n")


def parse_toml(text: str | bytes, where: str, *, error: type[KVQuantError] = KVQuantError) -> dict[str, Any]:
    """Parse TOML text. Raises ``error``, one line, for anything else."""
    try:
        return tomllib.loads(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: is not TOML: {' '.join(str(problem).split())}") from problem


def read_toml(kind: type[T], path: Path, *, error: type[KVQuantError] = KVQuantError) -> T:
    """Read a TOML file that people write: a key that ``kind`` does not have is refused."""
    document = parse_toml(_bytes_of(path, error), str(path), error=error)
    return from_document(kind, document, str(path), known_only=True, error=error)


def schema(kind: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a dataclass."""
    import msgspec

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}


def _bytes_of(path: Path, error: type[KVQuantError]) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from problem


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _words(message: str) -> str:
    match = _WHERE.match(message)
    path, what = (match["path"] or "", match["what"]) if match else ("", message)
    return f"{path}: {what[:1].lower()}{what[1:]}"


def _refuse_unknown(kind: Any, document: object, where: str, error: type[KVQuantError]) -> None:
    """Refuse unknown keys of a dataclass, in it and in the dataclasses it holds."""
    if isinstance(document, dict) and is_dataclass(kind):
        hints = get_type_hints(kind)
        for key, item in document.items():
            if key not in hints:
                raise error(f"{where}: unknown key {key!r}; known: {', '.join(sorted(hints))}")
            _refuse_unknown(hints[key], item, f"{where}.{key}", error)
        return
    items: list[tuple[str, object]] = [(where, document)]
    if isinstance(document, list):
        items = [(f"{where}[{index}]", item) for index, item in enumerate(document)]
    elif isinstance(document, dict) and get_origin(kind) is Mapping:
        items = [(f"{where}.{key}", item) for key, item in document.items()]
    for inner in get_args(kind):
        for place, item in items:
            _refuse_unknown(inner, item, place, error)
