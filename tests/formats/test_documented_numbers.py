"""The numbers in docs/formats.md are those of the committed records and of the package."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmark_scripts import load_benchmark
from formats.coded_layouts import BLOCK_BYTES, LAYOUTS
from formats.layouts import GGML
from kvquant.formats.ggml import COMMIT
from kvquant.formats.registry import get_format

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "formats.md").read_text()


def rows(first_cell: str) -> list[list[str]]:
    """Return the cells of every table row whose first cell is ``first_cell``."""
    lines = (line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| "))
    return [cells for cells in lines if cells[0] == first_cell]


speed = load_benchmark("format_speed")


def test_speed() -> None:
    record = speed.read()
    assert sys.modules["transform_tables"].written(PAGE, speed.tables(record)) == PAGE
    for name, directions in record["results"].items():
        for by_width in directions.values():
            assert all(result["same_bytes"] for result in by_width.values()), name
    bounds = record["bounds_gb_per_s"]
    said = "runs at {:.1f} GB/s, the passes of an encoder at {:.1f}"
    page = " ".join(PAGE.split())
    assert said.format(bounds["codes_times_scales"], bounds["extremes_and_codes"]) in page


def test_simd_differences() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "q8_0_simd.json").read_text())
    found = re.search(r"On ([\d,]+) blocks of N\(0,1\) (\d+) codes differ, one in ([\d,]+),", PAGE)
    assert found is not None
    n_blocks, codes, one_in = (int(number.replace(",", "")) for number in found.groups())
    assert (n_blocks, codes) == (record["n_blocks"], record["codes_that_differ"])
    assert one_in == round(32 * n_blocks / codes)


@pytest.mark.parametrize("name", [*GGML, *LAYOUTS])
def test_sizes(name: str) -> None:
    assert [name, f"{get_format(name).bits_per_value(64):g}"] in [cells[:2] for cells in rows(name)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_coded_blocks(name: str) -> None:
    halves = ["first half", "second half"]
    for part, half in zip(LAYOUTS[name], halves, strict=False):
        (cells,) = rows(f"{name}, {half}" if len(LAYOUTS[name]) > 1 else name)[-1:]
        signs = ", sign included" * (len(part.planes) == 1)
        assert cells[1:] == [
            f"{part.planes[0]}{signs}",
            " ".join(map(str, part.magnitudes)),
            f"{'peak' if part.by_peak else 'norm'} at {part.tries[0]:g}, {part.tries[1]:g}",
        ]
    assert f"values in {BLOCK_BYTES[name]} bytes" in next(
        line for line in PAGE.splitlines() if line.startswith(f"    {name} ")
    )


def test_the_commit() -> None:
    assert COMMIT in PAGE
