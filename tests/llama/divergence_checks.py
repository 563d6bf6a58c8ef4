"""What llama-kv-divergence must agree with, as functions of its tokens, so that wrong ones can be tried."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kvquant.evals.divergence import TokenDivergence
from llama.perplexity import Float64Array, SavedLogProbs, TableRow

PRINTED = 1e-4
"""How far llama-perplexity's printed means may be off: it prints five digits of values it stored in steps of
16/65535 nats."""


CLIPPED_BY = 2.0
"""Nats by which the raised values of a row are off at most, on average; the reference model shows 0.4."""


def column(tokens: Sequence[TokenDivergence], name: str, like: Float64Array) -> Float64Array:
    """A number of every token, in the shape of ``like``."""
    return np.array([getattr(token, name) for token in tokens]).reshape(like.shape)


def check_against_saved(
    tokens: Sequence[TokenDivergence], baseline: SavedLogProbs, policy: SavedLogProbs
) -> None:
    """Every token agrees with what llama-perplexity saved of both caches, as closely as its steps allow."""
    p = np.exp(baseline.log_probs)
    kl = (p * (baseline.log_probs - policy.log_probs)).sum(axis=-1)
    clipped = (p * (baseline.clipped() | policy.clipped())).sum(axis=-1)
    allowed = baseline.error + policy.error + CLIPPED_BY * clipped
    assert np.all(np.abs(column(tokens, "kl", kl) - kl) <= allowed)
    for name, saved in (("nll_baseline", baseline), ("nll_policy", policy)):
        found = np.minimum(column(tokens, name, saved.error), -saved.lowest)
        assert np.all(np.abs(found - saved.nll()) <= saved.error + 1e-5), name
    same_top = baseline.log_probs.argmax(axis=-1) == policy.log_probs.argmax(axis=-1)
    # A step of the stored values can hide which of two tokens is ahead.
    assert np.count_nonzero(column(tokens, "same_top", kl) != same_top) <= 1


def check_against_table(tokens: Sequence[TokenDivergence], rows: Sequence[TableRow], n_chunks: int) -> None:
    """The means over the first chunks agree with every row that llama-perplexity printed."""
    assert rows
    for row in rows:
        done = tokens[: row.n_chunks * len(tokens) // n_chunks]
        assert math.isclose(np.mean([token.kl for token in done]), row.kl, abs_tol=PRINTED)
        ppl = math.exp(np.mean([token.nll_policy for token in done]))
        assert math.isclose(ppl, row.ppl, rel_tol=PRINTED)
        delta_p_rms = math.sqrt(np.mean([token.delta_p**2 for token in done]))
        assert math.isclose(delta_p_rms, row.delta_p_rms, abs_tol=PRINTED)
        same_top = np.mean([token.same_top for token in done])
        assert math.isclose(same_top, row.same_top, abs_tol=1.01 / len(done))
