"""Proof: the patched attention runs, agrees with stock's up to rounding, and does not depend on threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama.proof import PATCHED, STOCK, Outcome, needs_both, needs_patched, run, small

Model = Callable[[str], Path]


def first_probabilities(outcome: Outcome) -> dict[int, float]:
    """Log probability of every token the server names for the first generated one."""
    return {entry["id"]: entry["logprob"] for entry in outcome.probabilities[0]["top_logprobs"]}


@needs_both
@pytest.mark.parametrize("arch", ["llama", "gemma3", "deepseek2"])
def test_it_runs_and_agrees_with_stock(arch: str, proof_model: Model) -> None:
    """Over a float32 cache, where stock rounds nothing either."""
    options = small(proof_model(arch), k_type="f32", v_type="f32")
    ours, stock = first_probabilities(run(PATCHED, options)), first_probabilities(run(STOCK, options))
    assert ours != stock, "bit for bit the same: the new code has not run"
    assert ours.keys() == stock.keys()
    assert max(abs(ours[token] - stock[token]) for token in ours) < 1e-2


@needs_patched
@pytest.mark.parametrize("arch", ["llama", "gemma3", "deepseek2"])
def test_results_do_not_depend_on_the_number_of_threads(arch: str, proof_model: Model) -> None:
    one, three = (
        run(PATCHED, small(proof_model(arch), k_type="q8_0", v_type="q8_0", n_threads=n_threads))
        for n_threads in (1, 3)
    )
    assert three.probabilities == one.probabilities
    assert three.saved == one.saved
