"""Frozen dataclasses to JSON objects and back, by their type hints."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from kvquant.errors import KVQuantError

_T = TypeVar("_T")


def to_document(value: Any) -> dict[str, Any]:
    """Return the JSON form of a dataclass: an object with a key per field."""
    return asdict(value)


def from_document(kind: type[_T], document: object, where: str = "document") -> _T:
    """Build the dataclass ``kind`` from its JSON form; keys it does not know are passed over.

    Raises KVQuantError naming the path of the value that is missing or of another type.
    """
    if not isinstance(document, Mapping):
        raise _mismatch(where, "an object", document)
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        path = f"{where}.{field.name}"
        if field.name in document:
            values[field.name] = _built(hints[field.name], document[field.name], path)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise KVQuantError(f"{path}: is missing")
    return kind(**values)


def _built(hint: Any, value: object, where: str) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return from_document(hint, value, where)
    origin = get_origin(hint)
    if origin in {Union, types.UnionType}:
        return _one_of(get_args(hint), value, where)
    if origin is tuple:
        return _tuple(get_args(hint), value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _member(hint, value, where)
    wanted = Mapping if origin is not None else (int, float) if hint is float else hint
    if hint is not Any and (not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool)):
        raise _mismatch(where, getattr(wanted, "__name__", "a number"), value)
    return float(value) if hint is float and isinstance(value, (int, float)) else value


def _one_of(choices: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and types.NoneType in choices:
        return None
    (choice,) = (choice for choice in choices if choice is not types.NoneType)
    return _built(choice, value, where)


def _tuple(items: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _mismatch(where, "a list", value)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise _mismatch(where, f"a list of {len(items)}", value)
    pairs = enumerate(zip(items, value, strict=True))
    return tuple(_built(item, entry, f"{where}[{index}]") for index, (item, entry) in pairs)


def _member(hint: type[Enum], value: object, where: str) -> Enum:
    try:
        return hint(value)
    except ValueError:
        raise _mismatch(where, " or ".join(str(member.value) for member in hint), value) from None


def _mismatch(where: str, wanted: str, value: object) -> KVQuantError:
    return KVQuantError(f"{where}: must be {wanted}, is {str(value)[:60]!r}")
