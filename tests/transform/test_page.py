"""docs/transform.md shows the record, and what it says of it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark_scripts import load_benchmark

tables = load_benchmark("transform_tables")
RECORDS = tables.read()
TEXTS = ("prose", "code")


def kl(model: str, k: str, transform: str = "none", **more: Any) -> float:
    """The KL of one setting of the record."""
    (found,) = tables.matching(RECORDS, {"model": model, "k": k, "transform": transform, **more})
    return float(found["kl"])


def test_the_tables_are_those_of_the_record() -> None:
    page, found = tables.PAGE.read_text(), tables.tables(RECORDS)
    assert tables.written(page, found) == page
    assert page.count("<!-- table ") == len(found)


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


def test_what_weights_of_the_moments_change() -> None:
    weighted = tables.read(tables.WEIGHTED)

    def ratio(model: str, transform: str, weights: str) -> float:
        key = {"model": model, "k": "q4_0", "transform": transform, "shrink": 0.3 * (transform == "balanced")}
        (plain,), (weighed,) = (tables.matching(weighted, {**key, "weights": w}) for w in ("none", weights))
        return float(weighed["kl"] / plain["kl"])

    less = {
        transform: sorted(round(1 - ratio(model, transform, "output"), 2) for model in tables.MODELS)
        for transform in ("balanced", "diagonal")
    }
    ends = {transform: (found[0], found[-1]) for transform, found in less.items()}
    assert ends == {"balanced": (0.08, 0.37), "diagonal": (0.04, 0.15)}
    for model in tables.MODELS:
        times = ratio(model, "balanced", "softmax") / ratio(model, "balanced", "output")
        assert times < (0.92 if model == "gemma3-270m" else 1.01), model
    assert 1.08 < ratio("qwen2.5-coder-0.5b", "diagonal", "softmax") < 1.12


def test_a_transform_is_written_where_it_surely_helps_and_nowhere_else() -> None:
    found = tables.calibrations()
    assert found
    for name, calibration in found.items():
        judged = calibration.judgement
        assert judged.better == (calibration.transform is not None), name
        assert judged.better == (judged.change is not None and judged.change.high < 0), name


def kl_at_depth(name: str, policy: str = "*:q4_0") -> dict[bool, float]:
    """KL of a cache with and without the transform, of a record."""
    policies = tables.divergences()[name].policies
    return {one.transform is not None: one.kl_mean for one in policies if one.policy == policy}


def test_the_page_quotes_the_calibration_at_4096_tokens() -> None:
    found = tables.calibrations()["qwen2.5-coder-0.5b.4096"].judgement
    deepest, other = found.by_depth[-1], kl_at_depth("qwen2.5-coder-0.5b.4096.prose")
    page = " ".join(tables.PAGE.read_text().split())
    for after, before, words in (
        (found.kl_with, found.kl_without, "{} with q4_0 keys instead of {} on the prose"),
        (deepest.with_transform, deepest.without, "{} instead of {} over its deepest quarter"),
        (other[True], other[False], "a q4_0 cache loses {} instead of {}. SmolLM2"),
    ):
        assert words.format(tables.digits(after), tables.digits(before)) in page


@pytest.mark.parametrize(
    ("name", "kind"), [("smollm2-135m", "centre, balanced"), ("gemma3-270m", "centre, diagonal")]
)
def test_the_page_quotes_prose_and_code_at_4096_tokens(name: str, kind: str) -> None:
    assert {layer.kind for layer in tables.calibrations()[f"{name}.4096"].layers} == {kind}
    found = [kl_at_depth(f"{name}.4096.{text}") for text in TEXTS]
    shown = [tables.digits(one[has]) for one in found for has in (True, False)]
    said = "a q4_0 cache loses {} instead of {} on prose, {} instead of {} on code".format(*shown)
    assert said in " ".join(tables.PAGE.read_text().split())


def test_the_page_quotes_gemma_at_16384_tokens() -> None:
    found = [kl_at_depth(f"gemma3-270m.16384.fitted-4096.{text}") for text in TEXTS]
    shown = [tables.digits(one[has]) for one in found for has in (True, False)]
    said = "from depth 8,192 on: {} instead of {} on prose, {} instead of {} on code".format(*shown)
    assert said in " ".join(tables.PAGE.read_text().split())


@pytest.mark.parametrize(
    ("name", "words"), [("smollm2-135m", "SmolLM2-135M"), ("gemma3-270m", "Gemma-3-270M")]
)
def test_the_page_quotes_what_was_judged_at_4096_tokens(name: str, words: str) -> None:
    found = tables.calibrations()[f"{name}.4096"].judgement
    shown = tables.digits(found.kl_with), tables.digits(found.kl_without)
    said = "{}'s q4_0 keys lose {} instead of {} on the judging part".format(words, *shown)
    assert said in " ".join(tables.PAGE.read_text().split())


def test_gemma_gains_alike_at_every_depth() -> None:
    with_it = [part.with_transform for part in tables.calibrations()["gemma3-270m.4096"].judgement.by_depth]
    assert max(with_it) < 1.3 * min(with_it)


def shares(name: str) -> list[float]:
    """What is left of the KL of a calibration's policy, at each range of positions it was judged on."""
    return [part.with_transform / part.without for part in tables.calibrations()[name].judgement.by_depth]


def test_what_the_page_says_of_512_tokens() -> None:
    for model in tables.MODELS:
        found = shares(f"{model}.512")
        assert max(found) < 1.4 * min(found), model
    assert all(0.28 < share < 0.36 for share in shares("smollm2-135m.512"))
    page = " ".join(tables.PAGE.read_text().split())
    of = {(model, text): kl_at_depth(f"{model}.512.{text}") for model in tables.MODELS for text in TEXTS}
    shown = [tables.digits(of["smollm2-135m", text][has]) for text in TEXTS for has in (True, False)]
    assert (
        "A q4_0 cache loses {} instead of {} on other prose, {} instead of {} on code.".format(*shown) in page
    )
    qwen = of["qwen2.5-coder-0.5b", "prose"][True]
    assert f"gains most: q4_0 loses {tables.digits(qwen)} with the file" in page
    prose, code = (
        of["gemma3-270m", text][False] / of["gemma3-270m", text][True] for text in ("prose", "code")
    )
    assert 4.5 < prose < 5 and 2.5 < code < 3


def test_calibrated_at_the_depth_it_is_used_at_no_policy_loses() -> None:
    for name, result in tables.divergences().items():
        if "fitted" in name or tables.of_own_types(name):
            continue
        kl: dict[str, dict[bool, float]] = {}
        for policy in result.policies:
            assert policy.kl_mean is not None
            kl.setdefault(policy.policy, {})[policy.transform is not None] = policy.kl_mean
        for policy_text, by_transform in kl.items():
            assert by_transform[True] < by_transform[False], (name, policy_text)


def test_most_of_what_remains_of_q4_0_is_of_k() -> None:
    for name, result in tables.divergences().items():
        kl = {one.policy: one.kl_mean for one in result.policies if one.transform is not None}
        for fine in {"*:k=q4_0/v=q8_0", "*:k=q4_0/v=f16"} & set(kl):
            assert "fitted" in name or 1 - kl[fine] / kl["*:q4_0"] < 1 / 2, (name, fine)


def test_a_file_for_512_tokens_does_harm_to_smollm2_at_4096() -> None:
    found = [kl_at_depth(f"smollm2-135m.4096.fitted-512.{text}", "*:k=q4_0/v=f16") for text in TEXTS]
    shown = [tables.digits(one[has]) for one in found for has in (True, False)]
    said = "at 4,096: q4_0 keys lose {} instead of {} on prose, {} instead of {} on code.".format(*shown)
    assert said in " ".join(tables.PAGE.read_text().split())


AMPLIFIES = ("transform-exact-gemma3-270m",)
"""ggml looks GELU up in a float16 table, so that any rounding grows to float16's, as in the proofs."""


@pytest.mark.parametrize(
    "path", sorted(tables.EXACT.glob("transform-exact-*.json")), ids=lambda path: path.stem
)
def test_predictions_of_real_models_move_by_rounding_alone(path: Path) -> None:
    found = json.loads(path.read_text())["differences"]
    times = 2 if path.stem in AMPLIFIES else 100
    for place, of_float16 in found.pop("float16 keys").items():
        for kind, of_place in found.items():
            assert of_place[place] is not None, (kind, place)
            assert times * of_place[place] < of_float16, (kind, place)


def test_what_readme_says_of_a_model_that_four_bits_break() -> None:
    found = tables.divergences()
    shown: list[str] = []
    for text in TEXTS:
        result = found[f"qwen2.5-coder-0.5b.512.{text}"]
        without, calibrated = tables._pair(result, "*:q4_0")
        assert float(without) > 20 * float(calibrated)
        shown += [calibrated, without]
    readme = " ".join((tables.ROOT / "README.md").read_text().split())
    said = "is {0} nats from float16 on prose and {2} on code, without it {1} and {3}.".format(*shown)
    assert said in readme
