"""What holds for every layer and every analysis, and that each of these checks notices a broken measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.checks import (
    Measure,
    check_attention_matches_its_definition,
    check_exact_storage_has_no_error,
    check_head_order_does_not_matter,
    check_json_round_trip,
    check_kl_is_not_negative,
    check_measures_are_none_or_not_negative,
    check_more_bits_mean_less_error,
    check_total_follows_from_layers,
)
from analysis.strategies import SMALL, analyses, layer_samples
from kvquant.analysis import Analysis, LayerErrors, LayerSample, MeanErrors, Sampling, analyze, open_source
from kvquant.analysis.measure import LayerMeter, Side
from kvquant.analysis.metrics import Float64Array, attend, attention_logits, kl_divergence, log_softmax

BOTH: frozenset[Side] = frozenset(("k", "v"))
TYPES = ("f16", "bf16", "q8_0", "q5_1", "q4_0", "iq4_nl")


def measure(sample: LayerSample, k_type: str, v_type: str) -> LayerErrors:
    return LayerMeter(sample, BOTH).errors(k_type, v_type)


def attention(sample: LayerSample) -> Float64Array:
    logits = attention_logits(sample.q, sample.k, sample.logit_scale)
    return attend(np.exp(log_softmax(logits, sample.visible)), sample.v)


def tame(sample: LayerSample) -> LayerSample:
    """The sample without values that overflow f16 or make the softmax hopelessly steep."""
    return replace(sample, k=np.clip(sample.k, -8, 8), v=np.clip(sample.v, -8, 8))


@given(layer_samples())
def test_f32_has_no_error(sample: LayerSample) -> None:
    check_exact_storage_has_no_error(measure, sample)


@given(layer_samples(), st.sampled_from(TYPES), st.sampled_from(TYPES))
def test_measures_are_none_or_not_negative(sample: LayerSample, k_type: str, v_type: str) -> None:
    check_measures_are_none_or_not_negative(measure(sample, k_type, v_type))


@given(layer_samples())
def test_attention_matches_its_definition(sample: LayerSample) -> None:
    check_attention_matches_its_definition(attention, tame(sample))


@given(layer_samples(), st.sampled_from(TYPES), st.sampled_from(TYPES))
def test_head_order_does_not_matter(sample: LayerSample, k_type: str, v_type: str) -> None:
    order = list(reversed(range(sample.k.shape[1])))
    check_head_order_does_not_matter(measure, tame(sample), (k_type, v_type), order)


@st.composite
def log_distributions(draw: st.DrawFn) -> Float64Array:
    logits = draw(st.lists(st.floats(-800, 800), min_size=4, max_size=4))
    return log_softmax(np.array([logits]), np.array([[True, True, True, False]]))


@given(log_distributions(), log_distributions())
def test_kl_is_not_negative(log_p: Float64Array, log_q: Float64Array) -> None:
    check_kl_is_not_negative(kl_divergence, log_p, log_q)


@pytest.mark.parametrize("profile", ["typical", "gpt2", "unit-gaussian"])
@pytest.mark.parametrize(
    "ladder", [("q4_0", "q5_0", "q8_0", "f16"), ("tq_mse_2b", "tq_mse_3b", "tq_mse_4b", "tq_mse_8b")]
)
def test_more_bits_mean_less_error(profile: str, ladder: tuple[str, ...]) -> None:
    source = open_source(SMALL, profile, sampling=Sampling(n_tokens=128, n_query=8))
    meters = [LayerMeter(source.layer(layer), BOTH) for layer in SMALL.kv_layers]
    check_more_bits_mean_less_error(
        [MeanErrors.over([meter.errors(name, name) for meter in meters]) for name in ladder]
    )


@given(analyses)
def test_json_reads_back(analysis: Analysis) -> None:
    check_json_round_trip(Analysis.to_json, Analysis.from_json, analysis)


def test_totals_follow_from_layers() -> None:
    check_total_follows_from_layers(analyze("1:q4_0,2-:k=q8_0", shape=SMALL, sampling=Sampling(64, 4)))


# Each check against something broken on purpose.


def sample_of(seed: int = 0) -> LayerSample:
    source = open_source(SMALL, "typical", seed=seed, sampling=Sampling(n_tokens=16, n_query=4))
    return source.layer(2)


def scaled_by(factor: float) -> Measure:
    def broken(sample: LayerSample, k_type: str, v_type: str) -> LayerErrors:
        errors = measure(sample, k_type, v_type)
        return replace(errors, attn_kl=factor * (errors.attn_kl or 0.0) + (factor - 1))

    return broken


def first_head_only(sample: LayerSample, k_type: str, v_type: str) -> LayerErrors:
    group = sample.q.shape[1] // sample.k.shape[1]
    return measure(
        replace(sample, k=sample.k[:, :1], v=sample.v[:, :1], q=sample.q[:, :group]), k_type, v_type
    )


def not_causal(sample: LayerSample) -> Float64Array:
    everything = np.ones_like(sample.visible)
    logits = attention_logits(sample.q, sample.k, sample.logit_scale)
    return attend(np.exp(log_softmax(logits, everything)), sample.v)


def wrong_group(sample: LayerSample) -> Float64Array:
    return attention(replace(sample, q=sample.q[:, ::-1]))


def test_the_error_checks_notice_a_broken_measure() -> None:
    with pytest.raises(AssertionError):
        check_exact_storage_has_no_error(scaled_by(2.0), sample_of())
    with pytest.raises(AssertionError):
        check_measures_are_none_or_not_negative(scaled_by(-1.0)(sample_of(), "q4_0", "q4_0"))
    with pytest.raises(AssertionError):
        check_head_order_does_not_matter(first_head_only, sample_of(), ("q4_0", "q4_0"), [1, 0])


@pytest.mark.parametrize("broken", [not_causal, wrong_group])
def test_the_attention_check_notices_broken_attention(
    broken: Callable[[LayerSample], Float64Array],
) -> None:
    with pytest.raises(AssertionError):
        check_attention_matches_its_definition(broken, sample_of())


def test_the_kl_check_notices_a_plain_difference() -> None:
    log_p, log_q = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    with pytest.raises(AssertionError):
        check_kl_is_not_negative(lambda p, q: float(np.sum(q - p)), log_p, log_q)


def test_the_ladder_check_notices_a_step_back() -> None:
    source = open_source(SMALL, "typical", sampling=Sampling(n_tokens=64, n_query=4))
    meter = LayerMeter(source.layer(1), BOTH)
    with pytest.raises(AssertionError):
        check_more_bits_mean_less_error([MeanErrors.over([meter.errors(n, n)]) for n in ("q8_0", "q4_0")])


def test_the_json_check_notices_a_lost_number() -> None:
    analysis = analyze("*:q8_0", shape=SMALL, baselines=("f16",), sampling=Sampling(32, 2))

    def lossy(analysis: Analysis) -> str:
        document = json.loads(analysis.to_json())
        document["layers"][0]["k"]["mse"] = None
        return json.dumps(document)

    with pytest.raises(AssertionError):
        check_json_round_trip(lossy, Analysis.from_json, analysis)


def test_the_totals_check_notices_a_wrong_sum() -> None:
    analysis = analyze("*:q8_0", shape=SMALL, baselines=(), sampling=Sampling(32, 2))
    wrong_bytes = replace(analysis, total=replace(analysis.total, kv_bytes=analysis.total.kv_bytes + 1))
    mean = sum(e or 0.0 for e in analysis.total.layer_attn_output_rel_error) / len(analysis.layers)
    wrong_mean = replace(analysis.total, attn_output_rel_error=mean)
    for broken in (wrong_bytes, replace(analysis, total=wrong_mean)):
        with pytest.raises(AssertionError):
            check_total_follows_from_layers(broken)
