"""The tables of docs/formats.md on speed, from the record of formats.py.

python benchmarks/format_speed.py          # print them
python benchmarks/format_speed.py --write  # put them into the page
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transform_tables import show, table

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/formats.json"
PAGE = ROOT / "docs/formats.md"
AT = "1024"
"""The width whose rates are shown in GB/s: a token's keys of eight heads of 128."""


def read() -> dict[str, Any]:
    """Return the record."""
    found: dict[str, Any] = json.loads(RECORD.read_text())
    return found


def tables(record: Mapping[str, Any]) -> dict[str, str]:
    """Return table name to table."""
    widths = list(next(_results(record))[2])
    return {
        "speed": table(
            ["", "", "kvquant", "gguf-py", "C"],
            [
                [name, direction, *(_rate(by_width[AT], who) for who in ("kvquant", "gguf_py", "c"))]
                for name, direction, by_width in _results(record)
            ],
        ),
        "speed by width": table(
            ["times gguf-py (times C)", "", *(f"{int(width):,}" for width in widths)],
            [
                [name, direction, *(_times(result) for result in by_width.values())]
                for name, direction, by_width in _results(record)
            ],
        ),
    }


def _results(record: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for name, directions in record["results"].items():
        for direction, by_width in directions.items():
            yield name, direction, by_width


def _rate(result: Mapping[str, Any], who: str) -> str:
    rate = result["gb_per_s"].get(who)
    return "—" if rate is None else f"{rate:.2f}"


def _times(result: Mapping[str, Any]) -> str:
    times = result["times_gguf_py"]
    return f"{'—' if times is None else f'{times:.1f}'} ({result['times_c']:.1f})"


if __name__ == "__main__":
    show(__doc__, PAGE, tables(read()))
