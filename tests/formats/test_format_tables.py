"""docs/turboquant.md shows the records of format_study.py and format_distortion.py; the formats fit them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmark_scripts import load_benchmark
from formats.coded_layouts import LAYOUTS
from formats.turboquant.checks import unit_vectors
from kvquant.formats.coded import CodedBlock
from kvquant.formats.registry import get_format

tables = load_benchmark("format_tables")


def test_the_tables_are_those_of_the_records() -> None:
    page, found = tables.PAGE.read_text(), tables.tables()
    assert sys.modules["transform_tables"].written(page, found) == page
    assert page.count("<!-- table ") == len(found)


def test_the_formats_lose_what_the_record_says() -> None:
    entries = tables.distortion()["formats"]
    assert [entry["format"] for entry in entries] == [name for name in LAYOUTS for _ in LAYOUTS[name]]
    for name in LAYOUTS:
        fmt = get_format(name)
        assert isinstance(fmt, CodedBlock)
        for part, entry in zip(fmt.parts, (e for e in entries if e["format"] == name), strict=True):
            x = unit_vectors(8000, part.n_values, seed=7)
            back = part.decode(part.encode(np.ascontiguousarray(x.T))).T
            measured = float(((back - x) ** 2).sum(1).mean())
            assert measured == pytest.approx(entry["lost"], rel=0.02), (name, entry["values"])


def test_what_the_page_says_of_the_study_holds() -> None:
    records = tables.study()

    def kl(k: str, v: str = "f16", transform: str = "none") -> float:
        (found,) = tables.matching(records, {"k": k, "v": v, "transform": transform})
        return float(found["kl"])

    assert {record["model"] for record in records} == {"smollm2-135m"}
    assert kl("f16", "64p3c2") < kl("f16", "64l3c1") * 5 / 6
    assert kl("64p3c2", transform="diagonal") < kl("64l3c1", transform="diagonal") * 5 / 6
    assert kl("f16", "64p3b2") == pytest.approx(kl("f16", "64p3c2"), rel=0.05)
    codebooks = [kl(k, transform="balanced") for k in ("32p5c2+32p3c2", "32p4c2+32l2c2")]
    even = [kl(k, transform="balanced") for k in ("32a5n1+32a3n1", "32a4n1+32a2n1")]
    thirds = [kl(k, transform="balanced") for k in ("16a5n1+16a4n1+32a3n1", "16a4n1+16a3n1+32a2n1")]
    assert codebooks[0] < 0.8 * even[0] and codebooks[1] < 0.75 * even[1]
    assert all(three > two for three, two in zip(thirds, even, strict=True))
    q4_0 = kl("32a4n1", transform="balanced")
    assert kl("32a4s3", transform="balanced") == pytest.approx(0.87 * q4_0, rel=0.02)
    assert kl("32p4c2", transform="balanced") == pytest.approx(2 / 3 * q4_0, rel=0.05)
