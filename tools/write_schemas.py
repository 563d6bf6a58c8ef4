"""Write the JSON Schemas of all result documents from their dataclasses; tests/test_schemas.py compares them.

python tools/write_schemas.py
"""

from __future__ import annotations

import inspect
import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from kvquant.analysis import Analysis
from kvquant.documents import schema
from kvquant.evals.records import RunInfo, SampleRecord
from kvquant.evals.validation.records import Start
from kvquant.files import write_atomic
from kvquant.memory.document import MemoryDocument
from kvquant.results import calibration, comparison, validation
from kvquant.results.search import SearchResult
from kvquant.results.sweep import CellRecord, ProbeRecord, SweepResult
from kvquant.search.search import SearchDocument

FOLDER = Path(__file__).resolve().parent.parent / "src" / "kvquant" / "schemas"

DOCUMENTS: dict[str, type[Any]] = {
    "analysis": Analysis,
    "calibration": calibration.CalibrationResult,
    "comparison": comparison.Comparison,
    "memory": MemoryDocument,
    "ranking": comparison.Ranking,
    "run": RunInfo,
    "sample": SampleRecord,
    "search": SearchResult,
    "search-proxy": SearchDocument,
    "sweep": SweepResult,
    "sweep-cell": CellRecord,
    "sweep-probe": ProbeRecord,
    "validation": validation.ValidationResult,
    "validation-start": Start,
}
"""What has a schema: documents of --json, and the lines of the files that a run and a validation keep."""


def schema_of(name: str) -> str:
    """Return the text of a schema file; what the docstring of a dataclass says is its description."""
    document = schema(DOCUMENTS[name])
    described = _docstrings(DOCUMENTS[name], {})
    for title, entry in document["$defs"].items():
        if title in described:
            entry["description"] = described[title]
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _docstrings(kind: Any, found: dict[str, str]) -> dict[str, str]:
    """Collect the docstrings of a dataclass and of those its fields are made of."""
    for inner in getattr(kind, "__args__", ()):
        _docstrings(inner, found)
    if is_dataclass(kind) and isinstance(kind, type) and kind.__name__ not in found:
        found[kind.__name__] = " ".join((inspect.getdoc(kind) or "").split())
        hints = inspect.get_annotations(kind, eval_str=True)
        for base in kind.__mro__[1:-1]:
            hints = {**inspect.get_annotations(base, eval_str=True), **hints}
        for hint in hints.values():
            _docstrings(hint, found)
    return found


if __name__ == "__main__":
    for name in DOCUMENTS:
        write_atomic(FOLDER / f"{name}.json", schema_of(name))
