"""What tools/upstream_alone.py makes of a run of tests, and what it does not prove twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import upstream_alone
from kvquant.documents import read_json
from kvquant.llama.patching.recipe import Series
from upstream_alone import Alone, Record, Suite, main, run_suite

TESTS = """
import os, pytest
def test_passes(): assert os.environ["KVQUANT_LLAMA_BIN"].endswith("/ours")
@pytest.mark.parametrize("n", [1, 2])
def test_is_skipped(n): pytest.skip("no reason")
def test_fails(): assert os.environ["KVQUANT_STOCK_BIN"].endswith("/ours")
@pytest.fixture
def broken(): raise ValueError
def test_errs(broken): pass
"""


def test_what_pytest_counted(tmp_path: Path) -> None:
    file = tmp_path / "test_small.py"
    file.write_text(TESTS)
    assert run_suite(str(file), Path("ours"), Path("stock")) == Suite(str(file), 1, 2, 2)


@pytest.mark.parametrize(
    ("mixed_cache", "suite", "holds"),
    [
        (True, Suite("f", 3, 1, 0), True),
        (False, Suite("f", 3, 1, 0), False),
        (True, Suite("f", 3, 0, 1), False),
        (True, Suite("f", 0, 4, 0), False),
    ],
)
def test_what_holds(mixed_cache: bool, suite: Suite, holds: bool) -> None:
    row = Alone("0001-p", "d", "b1", 1, 1, 0, "c++", ("p",), None, mixed_cache, (Suite("g", 1, 0, 0), suite))
    assert row.holds is holds


def test_what_is_proven_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proven: list[str] = []

    def prove(_: object, alone: Series, pin: Any, *_more: object) -> Alone:
        (patch,) = alone.patches
        proven.append(patch.name)
        suites = (Suite("f", 1, 0, 0),)
        return Alone(patch.name, patch.digest, pin.tag, 1, 1, 0, "c++", ("p",), None, True, suites)

    out = tmp_path / "record.json"
    monkeypatch.setattr(upstream_alone, "prove", prove)
    monkeypatch.setattr("sys.argv", ["", "--stock", "s", "--work", str(tmp_path), "--out", str(out)])
    assert main() == main() == 0
    assert proven == ["0001-kv-layers", "0004-kv-attention"]
    # A row of an older version of the patch, or one that failed, is proven anew, and alone.
    first, second = read_json(Record, out).patches
    for stale in (replace(first, digest="0"), replace(first, mixed_cache=False)):
        upstream_alone.write_json(out, Record([stale, second]))
        assert main() == 0
    assert proven[2:] == ["0001-kv-layers"] * 2
    assert read_json(Record, out).patches == [first, second]
