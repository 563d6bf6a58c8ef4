"""JSON Schemas (2020-12) of the documents that commands print and keep, as they ship with the package.

`tools/write_schemas.py` writes them from the dataclasses; a test holds them to these and to the records.
"""

from __future__ import annotations

from importlib import resources

from kvquant.errors import UsageError


def schema_names() -> tuple[str, ...]:
    """Return the names of all documents that have a schema, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


def schema_text(name: str) -> str:
    """Return the schema of a document as JSON text. Raises UsageError with the known names for another."""
    if name not in schema_names():
        raise UsageError(f"no schema {name!r}; known: {', '.join(schema_names())}")
    return resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8")
