"""docs/claims.md shows what the records of real models say; README and the advice conclude no more."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import real_models
import real_models_page
from kvquant.assets.fetch_model import is_fetched, model_place
from kvquant.assets.registry import models
from kvquant.evals.doctor import check_key_bias, key_bias_norms
from kvquant.model.gguf_file import open_model
from marked_page import filled

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def claims(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])
    import claims_real

    return claims_real


@pytest.fixture
def records(claims: Any) -> list[Any]:
    found = claims.at(real_models.records(), 512, "prefill")
    assert len(found) >= 2
    return [claims.Record(model, result) for model, result in found.items()]


def test_the_page_shows_the_table(claims: Any) -> None:
    page = claims.PAGE.read_text()
    content = claims.table(real_models.records())
    assert content in page and filled(page, {"real claims": content}) == page


def test_a_changed_record_changes_a_verdict(claims: Any) -> None:
    """With k8v4 as bad as q4_0, bits do not belong in K."""
    found = [
        (setting, replace(result, policies=tuple(_worse(policy) for policy in result.policies)))
        for setting, result in real_models.records()
    ]
    line = next(line for line in claims.table(found).splitlines() if "Bits belong in K" in line)
    assert "**refuted**" in line
    assert line not in claims.PAGE.read_text()


def _worse(policy: Any) -> Any:
    return replace(policy, kl_mean=9.0) if policy.policy == "*:k=q8_0/v=q4_0" else policy


def test_what_was_not_measured_is_said(claims: Any) -> None:
    setting, result = real_models.records()[0]
    line = claims.table([(setting, replace(result, policies=result.policies[:1]))]).splitlines()[4]
    assert "**not measured**" in line


def test_k8v4_is_the_best_below_q8_0_on_every_model(records: list[Any]) -> None:
    """README, `kvquant policy --list` and docs/policy-language.md say so, and that the hybrid loses to it."""
    for record in records:
        below = [
            (policy.kl_mean, policy.policy)
            for policy in record.result.policies
            if policy.rotation and policy.of_f16 < record.of("q8_0").of_f16
        ]
        assert min(below)[1] == "*:k=q8_0/v=q4_0", record.model
        assert record.kl("k8v4") < record.kl(real_models.HYBRID)
        # About its bytes: a ninth more at most.
        assert record.of("k8v4").of_f16 < 1.12 * record.of(real_models.HYBRID).of_f16


def test_four_bits_are_a_matter_of_the_model(records: list[Any]) -> None:
    found = [record.kl("q4_0") for record in records]
    assert 0.04 < min(found) < 0.06 and max(found) > 0.5


def test_rotation_helps_all_but_the_largest_and_rescues_no_broken_model(records: list[Any]) -> None:
    """README says so; told apart where intervals do not overlap, which on Gemma they all do."""
    for record in records:
        ratios, told_apart = {}, set()
        for name in real_models.UNIFORM:
            try:
                turned, plain = (record.of(name, rotation=rotation) for rotation in (True, False))
            except LookupError:
                continue
            ratios[name] = turned.kl_mean / plain.kl_mean
            if turned.kl_high < plain.kl_low or plain.kl_high < turned.kl_low:
                told_apart.add(ratios[name] < 1)
        if record.model == "qwen2.5-coder-1.5b":
            coarse = [ratios[name] for name in ("q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0")]
            assert told_apart == {False} and min(coarse) > 1 and 6 < max(coarse) < 6.5
        else:
            assert told_apart <= {True}
            assert sum(ratio < 1 for ratio in ratios.values()) >= 0.8 * len(ratios)
        if record.model.startswith("qwen"):
            assert min(record.kl("q4_0"), record.kl("q4_0", rotation=False)) > 0.5
    assert len(records) == 4
    said = "helps three of these models, harms the 1.5B**, and rescues none that q4_0 breaks"
    assert said in " ".join(real_models_page.README.read_text().split())


@pytest.mark.parametrize("name", sorted(models()))
def test_the_layers_with_a_bias_are_what_doctor_says(name: str, claims: Any) -> None:
    if not is_fetched(models()[name]):
        pytest.skip(f"not here; run: kvquant models get {name}")
    findings = check_key_bias(key_bias_norms(open_model(model_place(models()[name]))), None, name)
    layers = claims.BIAS_LAYERS.get(name, ())
    assert bool(findings) == bool(layers)
    if layers:
        assert f"of layer {', '.join(map(str, layers))} has a norm" in findings[0].what
