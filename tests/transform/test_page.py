"""docs/transform.md shows the record, and what it says of it holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_PATH = Path(__file__).resolve().parents[2] / "benchmarks/transform_tables.py"
_SPEC = importlib.util.spec_from_file_location("transform_tables", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
tables = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tables)
RECORDS = tables.read()


def kl(model: str, k: str, transform: str = "none", **more: Any) -> float:
    """The KL of one setting of the record."""
    (found,) = tables.matching(RECORDS, {"model": model, "k": k, "transform": transform, **more})
    return float(found["kl"])


def test_the_tables_are_those_of_the_record() -> None:
    page = tables.PAGE.read_text()
    assert tables.filled(page, tables.tables(RECORDS)) == page


@pytest.mark.parametrize("model", tables.MODELS)
def test_claims_that_hold_on_every_model(model: str) -> None:
    both = kl(model, "q4_0", "diagonal")
    assert both < kl(model, "q4_0") / 2
    assert both < kl(model, "q4_0", "centre")
    assert kl(model, "s53", "diagonal") < both
    assert kl(model, "s53", "balanced") < kl(model, "q4_0", "balanced")
    assert kl(model, "f16", v="tq3", scale="corrected") < kl(model, "f16", v="tq3")


def test_a_transform_fitted_at_512_harms_smollm2_at_4096() -> None:
    at_depth = {"n_ctx": 4096}
    none = kl("smollm2-135m", "q4_0", **at_depth)
    assert kl("smollm2-135m", "q4_0", "diagonal", fit_ctx=512, **at_depth) > none
    assert kl("smollm2-135m", "q4_0", "diagonal", fit_ctx=4096, **at_depth) == pytest.approx(none, rel=0.2)
    for model in ("qwen2.5-coder-0.5b", "gemma3-270m"):
        deep = kl(model, "q4_0", "diagonal", fit_ctx=512, **at_depth)
        assert (
            kl(model, "q4_0", "diagonal", fit_ctx=4096, **at_depth) < deep < kl(model, "q4_0", **at_depth) / 2
        )


def test_the_first_row_kept_exact_helps_two_of_three() -> None:
    ratio = {m: kl(m, "q4_0", "diagonal", exact_first=1) / kl(m, "q4_0", "diagonal") for m in tables.MODELS}
    assert ratio["qwen2.5-coder-0.5b"] < 0.75
    assert ratio["smollm2-135m"] < 0.75
    assert ratio["gemma3-270m"] > 1
