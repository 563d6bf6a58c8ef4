"""A policy costs the reference model with the patched attention what it costs with stock's, within noise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvquant.shipped import checkout_root

ROOT = checkout_root() or Path()
PROGRAMS = Path(os.environ.get("KVQUANT_LLAMA_BIN") or "/nonexistent")
N_TOKENS = 4 * 95


@pytest.mark.skipif(
    not (PROGRAMS / "llama-kv-divergence").is_file(),
    reason="KVQUANT_LLAMA_BIN names no build with llama-kv-divergence",
)
@pytest.mark.parametrize(
    ("policy", "path"), [("*:q4_0", "decode"), ("0-1:q8_0,2-:k=iq4_nl/v=q4_1", "prefill")]
)
def test_divergence_agrees(policy: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from attention_divergence import compare

    row = compare(PROGRAMS, policy, path, N_TOKENS)
    (difference, error), (stock, _) = row["difference"], row["stock"]
    assert row["n_chunks"] == 4
    assert stock > 0
    assert abs(difference) < max(5 * error, 0.2 * stock)
