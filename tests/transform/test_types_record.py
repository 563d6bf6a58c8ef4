"""The figure of the series' own types shows their records, and what docs/transform.md says of them holds."""

from __future__ import annotations

from benchmark_scripts import load_benchmark

types_figure = load_benchmark("types_figure")


def test_the_figure_is_what_the_records_say() -> None:
    assert types_figure.FIGURE.read_text() == types_figure.figure(types_figure.records())
