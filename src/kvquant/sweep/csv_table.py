"""The decision table as CSV, full precision, and tables of others in the same columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from kvquant.documents import from_strings
from kvquant.errors import UsageError
from kvquant.results.sweep import DecisionRow, Quality

_PREFIX = "quality_"
_NOT_READ = {"problems", "pareto", "n_cells"}
"""What only the rows of a sweep have."""

_PLAIN = tuple(field.name for field in fields(DecisionRow) if field.name != "quality")
_QUALITY = tuple(field.name for field in fields(Quality) if field.name != "source")
COLUMNS = (*_PLAIN, *(_PREFIX + name for name in _QUALITY))
REQUIRED = ("board", "model", "policy")


def write_csv(rows: Iterable[DecisionRow]) -> str:
    """Return a header and a line for each row; an unknown number is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {name: _cell(getattr(row, name)) for name in _PLAIN}
        cells |= {_PREFIX + name: _cell(getattr(row.quality, name)) for name in _QUALITY}
        writer.writerow(cells)
    return out.getvalue()


def read_published(path: Path) -> tuple[DecisionRow, ...]:
    """Read a table of others: any of COLUMNS, of which REQUIRED must be there. Each row is marked with its
    source, by default the file's name. Raises UsageError, one line, naming the line and the value at fault.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UsageError(f"{path}: cannot be read: {reason}; name a CSV file") from error
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        head, lines = tuple(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num} is not CSV: {error}") from error
    unknown = [name for name in head if name not in COLUMNS or name in _NOT_READ]
    missing = [name for name in REQUIRED if name not in head]
    if unknown or missing:
        what = f"unknown column {unknown[0]!r}" if unknown else f"no column {missing[0]!r}"
        known = ", ".join(name for name in COLUMNS if name not in _NOT_READ)
        raise UsageError(f"{path}: {what}; known: {known}")
    return tuple(_row(line, f"{path}: row {number}", path.name) for number, line in enumerate(lines, start=1))


def _row(line: dict[str | Any, str | Any], where: str, name: str) -> DecisionRow:
    if None in line or None in line.values():
        raise UsageError(f"{where}: more or fewer cells than the header")
    plain = {key: value.strip() for key, value in line.items() if not key.startswith(_PREFIX)}
    plain = {"label": plain["policy"], **plain}
    quality = {
        key.removeprefix(_PREFIX): value.strip() for key, value in line.items() if key.startswith(_PREFIX)
    }
    row = from_strings(DecisionRow, plain, where, error=UsageError)
    found = from_strings(Quality, quality, where, error=UsageError)
    return replace(row, quality=found, source=row.source or name)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={count}" for key, count in value.items())
    return repr(value) if isinstance(value, float) else str(value)
