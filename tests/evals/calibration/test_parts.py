"""The parts of a calibration that run no program: texts, depths, recipes fitted, what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import KVQuantError, TransformError, UsageError
from kvquant.evals.calibration.bench import by_depth
from kvquant.evals.calibration.plan import CalibrationPlan, check_plan, split_text
from kvquant.evals.calibration.recipes import RECIPES, fit_recipes, transform_of, uniform
from kvquant.evals.divergence import TokenDivergence
from kvquant.formats import split
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import open_model
from kvquant.model.shape import LayerShape
from kvquant.transform import ModelId, measure

MODEL = open_model(Path(__file__).parents[3] / "eval/reference-model/kvquant-reference-f16.gguf")
SHAPE = shape_of(MODEL)
PLAN = CalibrationPlan(Path("/bin"), MODEL, SHAPE, Path("text"), 512, 8192, 8, "*:k=q4_0/v=f16", "auto")


@given(st.text(alphabet="ab \n", max_size=300), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_parts_are_the_text(text: str, shares: list[int]) -> None:
    parts = split_text(text, shares)
    assert "".join(parts) == text and len(parts) == len(shares)


def test_parts_have_their_shares_and_end_with_lines() -> None:
    text = "".join(f"line {number}\n" for number in range(10_000))
    parts = split_text(text, (2, 1, 1))
    assert [round(4 * len(part) / len(text), 2) for part in parts] == [2, 1, 1]
    assert all(part.endswith("\n") for part in parts)
    assert [len(part) for part in split_text("x" * 40_000, (2, 1, 1))] == [20_000, 10_000, 10_000]


def tokens(kl: float, n: int = 100, first: int = 28) -> list[TokenDivergence]:
    rows = [(chunk, at) for chunk in range(3) for at in range(first, first + n)]
    return [TokenDivergence(0, chunk, at, kl * at, True, 1, 1) for chunk, at in rows]


@given(st.integers(1, 300), st.integers(0, 50))
def test_depths_cover_every_position_once(n: int, first: int) -> None:
    found = by_depth(tokens(1, n, first), tokens(2, n, first))
    assert found[0].first == first and found[-1].last == first + n - 1
    assert all(one.last + 1 == other.first for one, other in pairwise(found))
    for depth in found:
        assert depth.without == pytest.approx((depth.first + depth.last) / 2)
        assert depth.with_transform == pytest.approx(2 * depth.without)


@pytest.mark.parametrize(("n_ctx", "expected"), [(64, {64: 8192}), (512, {512: 6144, 64: 2048})])
def test_depths_that_are_fitted(n_ctx: int, expected: dict[int, int]) -> None:
    assert replace(PLAN, n_ctx=n_ctx).contexts == expected


@given(st.sampled_from([64, 500, 512, 4096, 16384]), st.integers(0, 40_000))
def test_all_tokens_are_fitted(n_ctx: int, more: int) -> None:
    plan = replace(PLAN, n_ctx=n_ctx, n_fit=n_ctx + more)
    assert sum(plan.contexts.values()) == plan.n_fit and max(plan.contexts) == n_ctx


def test_layers_are_those_whose_keys_are_quantized() -> None:
    assert PLAN.layers == SHAPE.kv_layers
    assert replace(PLAN, policy="0:q8_0,1:k=f16/v=q4_0,rest:f16").layers == (0,)


def header_with(**values: Any) -> Any:
    header = replace(MODEL.header, values={**MODEL.header.values, **values})
    return replace(MODEL, shards=(header,))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"policy": "*:f16"}, UsageError, "quantizes no keys"),
        ({"n_ctx": 10**6, "n_fit": 10**7}, UsageError, "was trained on"),
        ({"n_fit": 100}, UsageError, "--tokens 100: fewer than --ctx 512"),
        (
            {"shape": replace(SHAPE, layers=(replace(SHAPE.layers[0], stores_v=False),))},
            TransformError,
            "K is also its V",
        ),
        (
            {"kind": "centre", "model": header_with(**{f"{MODEL.arch}.attn_logit_softcapping": 50.0})},
            TransformError,
            "caps its logits: keys cannot be centred",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(
    change: dict[str, Any], kind: type[KVQuantError], message: str
) -> None:
    check_plan(PLAN)
    with pytest.raises(kind, match=message) as caught:
        check_plan(replace(PLAN, **change))
    assert "\n" not in str(caught.value)


def test_every_recipe_is_fitted_as_it_is_named() -> None:
    rng = np.random.default_rng(0)
    moments = [
        measure(i, rng.standard_normal((99, 2, 8)) + 3, rng.standard_normal((99, 4, 8))) for i in (0, 3)
    ]
    fitted = fit_recipes(moments, RECIPES)
    assert set(fitted) == {(layer, recipe) for layer in (0, 3) for recipe in RECIPES if recipe != "none"}
    for (_, recipe), layer in fitted.items():
        assert layer.centre.any() == recipe.startswith("centre")
        assert layer.kind in recipe or (layer.kind == "centre" and recipe == "centre")
    model = ModelId("", "x", 4, 1)
    mixed = transform_of(((0, "none"), (3, "balanced")), fitted, model, {"n_ctx": 9})
    assert [layer.layer for layer in mixed.layers] == [3] and mixed.n_ctx == 9
    assert transform_of(uniform((0, 3), "none"), fitted, model, {}).layers == ()


def test_a_policy_of_ordered_types_orders_every_recipe_and_the_baseline() -> None:
    rng = np.random.default_rng(0)
    strong = np.where(np.arange(64) % 2, 9.0, 0.5)
    moments = [
        measure(i, rng.standard_normal((99, 2, 64)) * strong, rng.standard_normal((99, 4, 64)))
        for i in (0, 3)
    ]
    fitted = fit_recipes(moments, RECIPES, ordered=True)
    assert set(fitted) == {(layer, recipe) for layer in (0, 3) for recipe in RECIPES}
    alone = fitted[0, "none"]
    assert alone.forward is not None and not alone.centre.any()
    assert (alone.forward.sum(axis=2) == 1).all() and (alone.forward.sum(axis=1) == 1).all()
    assert (alone.forward[:, : split.HALF].argmax(axis=2) % 2 == 1).all(), "the strong half comes first"
    policy = "*:k=k4x2/v=f16"
    assert replace(PLAN, policy=policy).ordered and not PLAN.ordered
    narrow = replace(PLAN, policy=policy, shape=replace(SHAPE, layers=(LayerShape(4, 2, 96, 96),) * 4))
    with pytest.raises(TransformError, match="heads of 96 values"):
        check_plan(narrow)
