"""Every rule of the verdict, on summaries made to meet or miss it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from kvquant.analysis import (
    Analysis,
    LayerErrors,
    LayerResult,
    MeanErrors,
    SideErrors,
    SourceInfo,
    StoredSide,
    Summary,
    analyze,
)
from kvquant.analysis.verdict import (
    BEYOND,
    GRADES,
    carriers,
    dominating,
    grade,
    suggestion,
    verdict,
)
from kvquant.tables import short_percent

PROFILE = SourceInfo("profile", "typical", "", "synthetic", 0, 8, 4, "1 of 1", "1 of 1")
CAPTURE = replace(PROFILE, kind="capture")


def summary(
    policy: str, n_bytes: float, errors: list[float | None], kl: float = 0.005, runnable: bool = True
) -> Summary:
    """A policy of ``n_bytes`` percent of f16's 1 MiB, spread evenly over the layers."""
    layers = [
        LayerErrors(*[SideErrors(0, 0, e)] * 2, attn_logit_rmse=0, attn_kl=kl, attn_output_rel_error=e)
        for e in errors
    ]
    total = round(1024**2 * n_bytes / 100)
    means = MeanErrors.over(layers)
    return Summary(
        **{entry.name: getattr(means, entry.name) for entry in fields(means) if entry.init},
        policy=policy,
        runnable=runnable,
        kv_bytes=total,
        kv_bytes_f16=1024**2,
        unrotated=None,
        layer_attn_output_rel_error=tuple(errors),
        layer_bytes=tuple(total // len(errors) for _ in errors),
    )


def layer(index: int, error: float, k: float = 0.0, v: float = 0.0, name: str = "q4_0") -> LayerResult:
    k_side, v_side = (
        StoredSide(0, 0, own, type=name, bits_per_value=4.5, bytes=1000, rotated=True) for own in (k, v)
    )
    return LayerResult(0, 0, error, k=k_side, v=v_side, layer=index, kv_index=index, unrotated=None)


def layers(errors: list[float], **sides: float) -> list[LayerResult]:
    return [layer(index, error, **sides) for index, error in enumerate(errors)]


Q8_0 = summary("*:q8_0", 53, [0.01] * 10, kl=0.0001)
Q4_0 = summary("*:q4_0", 28, [0.20] * 10, kl=0.05)


def test_cost_and_references_come_first() -> None:
    text = verdict(
        layers([0.05] * 10), summary("*:q5_0", 34, [0.05] * 10), {"q8_0": Q8_0, "q4_0": Q4_0}, 4096, PROFILE
    )
    assert text.startswith(
        "*:q5_0 takes 0.34x of f16's bytes (348.16 KiB, not 1.00 MiB, at 4096 tokens) with a moderate error: "
        "attention output off by 5.0 % (q8_0 1.0 % at 0.53x, q4_0 20 % at 0.28x); "
    )
    assert "\n" not in text and text.endswith("confirm on the model with kvquant divergence.")


@pytest.mark.parametrize(("most", "most_kl", "name"), GRADES)
def test_grades_end_where_they_say(most: float, most_kl: float, name: str) -> None:
    assert grade(most, most_kl) == name
    assert grade(most * 1.001, most_kl) != name
    assert grade(most, most_kl * 1.001) != name


def test_what_is_worse_than_every_grade() -> None:
    assert grade(0.31, 0) == grade(0, 0.11) == BEYOND


def test_the_grades_fit_the_typical_profile() -> None:
    found: Analysis = analyze("q8_0", profile="typical", baselines=("q8_0", "q4_0", "f16"))
    sizes = {}
    for name, total in found.baselines.items():
        assert total.errors.attn_output_rel_error is not None and total.errors.attn_kl is not None
        sizes[name] = grade(total.errors.attn_output_rel_error, total.errors.attn_kl)
    assert sizes == {"f16": "a small error", "q8_0": "a small error", "q4_0": "a large error"}


def test_a_better_baseline_is_named() -> None:
    total = summary("hybrid", 37, [0.1] * 10)
    better = summary("*:q5_0", 34, [0.05] * 10)
    assert dominating(total, {"q8_0": Q8_0, "q5_0": better, "q4_0": Q4_0}) == "q5_0"
    text = verdict(layers([0.1] * 10), total, {"q5_0": better, "q8_0": Q8_0}, 4096, PROFILE)
    assert "; use q5_0 (0.34x, 5.0 %) instead, which is no larger and no less accurate; " in text


@pytest.mark.parametrize(
    "other",
    [
        summary("*:q5_0", 40, [0.05] * 10),
        summary("*:q5_0", 34, [0.11] * 10),
        summary("*:q5_0", 37.1, [0.0995] * 10),
        summary("*:tq_mse_4b", 26, [0.01] * 10, runnable=False),
        summary("*:f16", 34, [None] * 10),
        summary("*:q5_0", 34, [0.05] * 10, kl=0.0051),
    ],
    ids=["larger", "less accurate", "equal within a percent", "not runnable", "unknown", "more KL"],
)
def test_what_does_not_beat_the_policy(other: Summary) -> None:
    assert dominating(summary("hybrid", 37, [0.1] * 10), {"other": other}) is None


def test_q5_0_is_not_advised_instead_of_more_bits_for_keys() -> None:
    """By its output error alone it would be; on every real model measured k8v4 is far ahead."""
    found: Analysis = analyze("k8v4", baselines=("q8_0", "q5_0", "q4_0"))
    assert found.baselines["q5_0"].errors.attn_output_rel_error < found.total.errors.attn_output_rel_error
    assert "instead" not in found.verdict and "q5_0" not in found.verdict


def test_the_most_accurate_of_several_better_ones_is_named() -> None:
    total = summary("hybrid", 37, [0.1] * 10)
    rivals = {"a": summary("*:q5_0", 34, [0.05] * 10), "b": summary("*:q5_1", 37, [0.04] * 10)}
    assert dominating(total, rivals) == "b"


def test_what_the_policy_beats_and_the_next_step() -> None:
    total = summary("mixed", 40, [0.02] * 10)
    worse = summary("*:q5_0", 41, [0.05] * 10)
    text = verdict(layers([0.02] * 10), total, {"q5_0": worse, "q8_0": Q8_0}, 4096, PROFILE)
    assert "it is better than q5_0 in bytes or error and worse in neither" in text
    assert "step up" not in text
    finer = summary("*:q8_0", 53, [0.009] * 10)
    assert "the next clear step up is q8_0 (0.53x, 0.9 %)" in verdict(
        layers([0.02] * 10), total, {"q8_0": finer}, 1, PROFILE
    )


def test_the_layers_that_carry_the_error_are_the_fewest() -> None:
    assert carriers(layers([0.1, 0.5, 0.1, 0.1]))[0] == (1,)
    found, share = carriers(layers([0.3, 0.1, 0.1, 0.3]))
    assert found == (0,) and share == pytest.approx(0.45)
    assert carriers(layers([0.1] * 10))[0] == (0, 1, 2, 3)
    assert carriers(layers([0.0, 0.0])) == ((), 0.0)


def test_few_layers_get_a_measured_suggestion() -> None:
    errors = [0.1] * 9 + [0.6]
    total = summary("*:q4_0", 28, errors)
    text = verdict(layers(errors, k=0.5), total, {"q8_0": Q8_0}, 4096, PROFILE)
    assert "layer 9 carries 80 % of the squared error, nearly all of it through K" in text
    assert ": try 0-8:q4_0,9:q8_0 (0.30x, 9.5 %); " in text


def test_keys_alone_are_upgraded_where_the_error_comes_through_them() -> None:
    errors = [0.1] * 9 + [0.6]
    total = summary("*:q4_0", 28, errors)
    keys = summary("*:k=q8_0/v=q4_0", 41, [0.05] * 10)
    baselines = {"q8_0": Q8_0, "k8v4": keys}
    through_k = verdict(layers(errors, k=0.5, v=0.1), total, baselines, 4096, PROFILE)
    assert ": try 0-8:q4_0,9:k=q8_0/v=q4_0 (0.29x, 9.6 %); " in through_k
    for other in (
        layers(errors, k=0.5, v=0.4),
        [layer(i, e, 0.5, name="q5_0") for i, e in enumerate(errors)],
    ):
        assert "9:q8_0 (0.30x, 9.5 %); " in verdict(other, total, baselines, 4096, PROFILE)
    # Where keys alone do not help, both sides are tried.
    useless = {**baselines, "k8v4": summary("*:k=q8_0/v=q4_0", 41, errors)}
    assert ": try 0-8:q4_0,9:q8_0 (" in verdict(layers(errors, k=0.5), total, useless, 4096, PROFILE)


def test_spread_out_error_gets_no_suggestion() -> None:
    text = verdict(layers([0.1] * 32, v=0.1), summary("*:q4_0", 28, [0.1] * 32), {}, 4096, PROFILE)
    assert "the error is spread over the layers, nearly all of it through V" in text and "try" not in text


def test_a_suggestion_that_does_not_help_is_not_made() -> None:
    errors = [0.01] * 9 + [0.05]
    total = summary("*:q8_0", 53, errors)
    assert suggestion(layers(errors), total, (9,), {"q8_0": replace(total)}) is None
    assert suggestion(layers(errors), total, (9,), {}) is None
    assert suggestion(layers(errors), total, (9,), {"q8_0": summary("*:q8_0", 53, [None] * 10)}) is None


def test_a_long_suggestion_is_described() -> None:
    alternating = [layer(i, 0.9 if i == 40 else 0.1, name="q4_0" if i % 2 else "q5_0") for i in range(64)]
    total = summary("long", 30, [x.errors.attn_output_rel_error for x in alternating])
    text = verdict(alternating, total, {"q8_0": summary("*:q8_0", 53, [0.01] * 64)}, 4096, PROFILE)
    assert "layer 40 carries 56 % of the squared error: try q8_0 there (" in text


def test_a_long_policy_is_not_repeated() -> None:
    long = ",".join(f"{2 * i}:q4_0" for i in range(30))
    assert verdict(layers([0.1] * 2), summary(long, 28, [0.1] * 2), {}, 1, PROFILE).startswith(
        "This policy takes"
    )


def test_unknown_and_absent_errors_are_said() -> None:
    unknown = verdict(layers([0.1] * 2), summary("*:f16", 100, [0.1, None]), {}, 4096, PROFILE)
    assert "a type overflows on this data" in unknown and "spread" not in unknown
    exact = verdict(layers([0.0] * 2), summary("*:f32", 200, [0.0, 0.0]), {"q8_0": Q8_0}, 4096, PROFILE)
    assert "with no error at all; synthetic" in exact


def test_how_far_to_trust_depends_on_the_source() -> None:
    total = summary("*:q4_0", 28, [0.1] * 2)
    assert "synthetic K/V can rank policies, not predict quality" in verdict(
        layers([0.1] * 2), total, {}, 1, PROFILE
    )
    assert "one capture is one text" in verdict(layers([0.1] * 2), total, {}, 1, CAPTURE)
    reference = replace(CAPTURE, name="reference")
    assert "this is the reference model, and models differ: confirm on the model" in verdict(
        layers([0.1] * 2), total, {}, 1, reference
    )


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0, "0 %"), (0.00049, "0.049 %"), (0.0162, "1.6 %"), (0.08, "8.0 %"), (0.267, "27 %"), (1.2, "120 %")],
)
def test_percentages(ratio: float, text: str) -> None:
    assert short_percent(ratio) == text
