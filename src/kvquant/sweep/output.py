"""What a sweep writes beside its journal: the result document, the table as CSV."""

from __future__ import annotations

from pathlib import Path

from kvquant.documents import write_json
from kvquant.files import write_atomic
from kvquant.results.sweep import SweepResult
from kvquant.sweep.csv_table import write_csv
from kvquant.sweep.journal import RESULT

TABLE = "table.csv"


def write_results(folder: Path, result: SweepResult) -> None:
    """Write sweep.json and table.csv, each whole."""
    write_json(folder / RESULT, result)
    write_atomic(folder / TABLE, write_csv(result.rows))
