"""The measuring of cache settings, on a tiny untrained model."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from kvquant.errors import UsageError  # noqa: E402
from reference_model.curves import (  # noqa: E402
    BASELINE,
    LONG_NAMES,
    RecallPoint,
    Setting,
    ablations,
    draw_documents,
    draw_prompts,
    layer_settings,
    measure,
    uniform_settings,
)
from reference_model.growth import new_model  # noqa: E402


@pytest.fixture(scope="module")
def tiny_model(tiny_config):
    return new_model(tiny_config, seed=3)


@pytest.fixture(scope="module")
def documents():
    return draw_documents(seed=1, n_documents=3, n_tokens=32, most_pairs=8)


@pytest.fixture(scope="module")
def results(tiny_model, documents):
    told: list[str] = []
    settings = [Setting(BASELINE, "*:f16"), Setting("exact", "*:f32"), Setting("coarse", "*:q4_0")]
    points = [RecallPoint(4, 32, 2), RecallPoint(8, 32, 2)]
    found = measure(tiny_model, settings, draw_prompts(1, points), documents, told.append)
    assert len(told) == len(settings)
    return {result["name"]: result for result in found}


def test_the_baseline_is_exactly_itself(results):
    assert results[BASELINE]["divergence"] == {"mean": 0.0, "error": 0.0}
    assert results[BASELINE]["same_top"] == 1.0


def test_coarser_formats_diverge_more(results):
    assert 0 < results["exact"]["divergence"]["mean"] < results["coarse"]["divergence"]["mean"]


def test_recall_counts_every_pair_asked(results):
    counts = {label: cell["n"] for label, cell in results["coarse"]["recall"].items()}
    assert counts == {"4 pairs, 32 tokens": 8, "8 pairs, 32 tokens": 16}
    for cell in results["coarse"]["recall"].values():
        assert cell["low"] <= cell["n_right"] / cell["n"] <= cell["high"]


def test_questions_lost_and_gained_explain_the_difference_from_f16(results):
    for label, cell in results["coarse"]["recall"].items():
        exact = results[BASELINE]["recall"][label]
        assert cell["n_right"] == exact["n_right"] - cell["n_lost"] + cell["n_gained"]
        assert exact["n_lost"] == exact["n_gained"] == 0


def test_questions_are_paired_one_by_one(tiny_model, monkeypatch):
    from reference_model import curves

    hits = iter([torch.tensor([True, False, True, True]), torch.tensor([False, True, False, True])])
    monkeypatch.setattr(curves, "_hits", lambda *_: next(hits))
    (found,) = measure(tiny_model, [Setting("x", "*:q4_0")], {"p": []}, [], lambda _: None)
    cell = found["recall"]["p"]
    assert (cell["n_right"], cell["n"], cell["n_lost"], cell["n_gained"]) == (2, 4, 2, 1)
    assert "divergence" not in found


@pytest.mark.parametrize("text", ["", "32", "32x1024", "axbxc", "1x2x3x4"])
def test_a_point_is_three_numbers(text):
    assert RecallPoint.parse("32x1024x16") == RecallPoint(32, 1024, 16)
    with pytest.raises(UsageError, match="PAIRSxTOKENSxPROMPTS"):
        RecallPoint.parse(text)


def test_perplexities_are_those_of_the_text(tiny_model, documents, results):
    losses = []
    for reading in documents:
        with torch.inference_mode():
            logits = tiny_model(reading.tokens[None, :-1])[0]
        losses.append(torch.nn.functional.cross_entropy(logits, reading.tokens[1:], reduction="none"))
    assert results["exact"]["perplexity"] == pytest.approx(
        math.exp(float(torch.cat(losses).mean())), rel=1e-5
    )


def test_every_setting_has_a_name_of_its_own():
    names = [setting.name for setting in (*uniform_settings(), *layer_settings(32, "q4_0"))]
    assert len(set(names)) == len(names) == 10 + 64
    assert set(LONG_NAMES) <= set(names)


def test_leaving_out_a_layer_matters_and_is_undone(tiny_model, documents):
    before = {name: values.clone() for name, values in tiny_model.state_dict().items()}
    rows = list(ablations(tiny_model, documents))
    assert [row["layer"] for row in rows] == [0, 1]
    assert all(row["without_attention"] > 0 and row["without_layer"] > 0 for row in rows)
    assert all(torch.equal(values, before[name]) for name, values in tiny_model.state_dict().items())
