"""Properties of the analysis as functions of what they judge, so that a meta test can make each fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from kvquant.analysis import Analysis, LayerErrors, LayerSample, MeanErrors
from kvquant.analysis.metrics import Float64Array

Measure = Callable[[LayerSample, str, str], LayerErrors]


def numbers(errors: LayerErrors) -> tuple[float | None, ...]:
    """All measures of a layer, sides first."""
    return (
        errors.k.mse,
        errors.k.nmse,
        errors.k.attn_output_rel_error,
        errors.v.mse,
        errors.v.nmse,
        errors.v.attn_output_rel_error,
        errors.attn_logit_rmse,
        errors.attn_kl,
        errors.attn_output_rel_error,
    )


def check_exact_storage_has_no_error(measure: Measure, sample: LayerSample) -> None:
    assert numbers(measure(sample, "f32", "f32")) == (0.0,) * 9


def check_measures_are_none_or_not_negative(errors: LayerErrors) -> None:
    for value in numbers(errors):
        assert value is None or (math.isfinite(value) and value >= 0), errors


def check_kl_is_not_negative(
    kl: Callable[[Float64Array, Float64Array], float | None], log_p: Float64Array, log_q: Float64Array
) -> None:
    value = kl(log_p, log_q)
    assert value is not None and value >= 0, value
    assert kl(log_p, log_p) == 0


def check_head_order_does_not_matter(
    measure: Measure, sample: LayerSample, types: tuple[str, str], order: Sequence[int]
) -> None:
    """Permuting the KV heads together with their groups of query heads changes no measure."""
    n_head_kv = sample.k.shape[1]
    group = sample.q.shape[1] // n_head_kv
    query_order = [head * group + i for head in order for i in range(group)]
    permuted = replace(sample, k=sample.k[:, order], v=sample.v[:, order], q=sample.q[:, query_order])
    for before, after in zip(
        numbers(measure(sample, *types)), numbers(measure(permuted, *types)), strict=True
    ):
        if before is None or after is None:
            assert before == after
        else:
            assert math.isclose(before, after, rel_tol=1e-6, abs_tol=1e-12), (before, after)


def check_attention_matches_its_definition(
    attention: Callable[[LayerSample], Float64Array], sample: LayerSample
) -> None:
    """Compare (n_head_kv, group, n_query, head_dim_v) with softmax attention written out query by query."""
    found = attention(sample)
    group = sample.q.shape[1] // sample.k.shape[1]
    for head in range(sample.q.shape[1]):
        for row, at in enumerate(sample.query_positions):
            seen = [
                t
                for t, position in enumerate(sample.positions)
                if position <= at and (not sample.window or at - position < sample.window)
            ]
            logits = np.array(
                [
                    math.fsum(
                        float(a) * float(b)
                        for a, b in zip(sample.q[row, head], sample.k[t, head // group], strict=True)
                    )
                    * sample.logit_scale
                    for t in seen
                ]
            )
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            expected = weights @ sample.v[seen, head // group].astype(np.float64)
            np.testing.assert_allclose(
                found[head // group, head % group, row], expected, rtol=1e-9, atol=1e-9
            )


def check_more_bits_mean_less_error(totals: Sequence[MeanErrors]) -> None:
    """``totals`` from the fewest bits to the most: every measure falls at every step."""
    for worse, better in pairwise(totals):
        for name in MeanErrors.__dataclass_fields__:
            high, low = getattr(worse, name), getattr(better, name)
            assert high is not None and low is not None and low < high, (name, high, low)


def check_json_round_trip(
    write: Callable[[Analysis], str], read: Callable[[str], Analysis], analysis: Analysis
) -> None:
    assert read(write(analysis)) == analysis


def check_total_follows_from_layers(analysis: Analysis) -> None:
    """Bytes add up, and the total error is the root mean square of the layers' errors."""
    assert analysis.total.kv_bytes == sum(layer.k.bytes + layer.v.bytes for layer in analysis.layers)
    for summary in (analysis.total, *analysis.baselines.values()):
        assert summary.kv_bytes == sum(summary.layer_bytes)
        squares = [None if e is None else e * e for e in summary.layer_attn_output_rel_error]
        expected = None if None in squares else math.sqrt(math.fsum(s or 0.0 for s in squares) / len(squares))
        found = summary.errors.attn_output_rel_error
        if expected is None or found is None:
            assert expected == found
        else:
            assert math.isclose(found, expected, rel_tol=1e-12), (found, expected)
