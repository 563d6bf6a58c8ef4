"""Reading tables of a TOML file key by key, each mistake named with the file and the key at fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvquant.errors import UsageError


def only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raise UsageError for a key that is not known."""
    unknown = next((key for key in table if key not in known), None)
    if unknown is not None:
        raise UsageError(f"{where}: unknown key {unknown!r}; known: {', '.join(sorted(known))}")


def table_at(document: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """Return the table ``[key]``. Raises UsageError when there is none."""
    table = document.get(key)
    if not isinstance(table, dict):
        raise UsageError(f"{where}: has no [{key}]")
    return table


def text_at(table: Mapping[str, Any], key: str, where: str) -> str:
    """Return a text that is not empty. Raises UsageError."""
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: {key} must be a text")
    return value


def positive_at(table: Mapping[str, Any], key: str, where: str) -> float:
    """Return a positive number. Raises UsageError."""
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UsageError(f"{where}: {key} must be a positive number")
    return float(value)


def whole_at(table: Mapping[str, Any], key: str, where: str, default: int, least: int = 1) -> int:
    """Return a whole number of at least ``least``, ``default`` for a missing key. Raises UsageError."""
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{where}: {key} must be a whole number of at least {least}")
    return value
