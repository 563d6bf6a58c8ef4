"""What a layer can be given, and transforms put together from what each layer is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from kvquant.transform import (
    KINDS,
    FitOptions,
    Kind,
    KVTransform,
    LayerMoments,
    LayerTransform,
    ModelId,
    fit_layer,
)
from kvquant.transform.order import ordered_layer

Recipe = Literal["none", "centre", "diagonal", "centre, diagonal", "balanced", "centre, balanced"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
"""From the cheapest to compute with to the dearest: nothing, a subtraction, products, both, matrices."""

SHRINK = 0.3
"""How far the balanced kind's moments are drawn towards their diagonals. The full moments of few tokens do
not carry over, and few tokens have most of the weight; docs/transform.md has what it does to three models."""

FLOOR = FitOptions().floor

Assignment = tuple[tuple[int, Recipe], ...]
"""What each layer is given, ascending."""

Fitted = Mapping[tuple[int, Recipe], LayerTransform]


def recipe_of(kind: Kind, *, centred: bool) -> Recipe:
    """Return the recipe of a kind that --kind names."""
    wanted = kind if kind == "centre" or not centred else f"centre, {kind}"
    return next(recipe for recipe in RECIPES if recipe == wanted)


def possible(*, centred: bool) -> tuple[Recipe, ...]:
    """Return the recipes a layer can be given; without a centre where something else sees the logits."""
    return tuple(recipe for recipe in RECIPES if centred or not recipe.startswith("centre"))


def fit_recipes(
    moments: Sequence[LayerMoments], recipes: Sequence[Recipe], *, ordered: bool = False
) -> Fitted:
    """Fit every layer by every recipe; "none" is no transform, or where dimensions are ordered that alone."""
    fitted: dict[tuple[int, Recipe], LayerTransform] = {
        (layer.layer, recipe): _fit(layer, recipe)
        for layer in moments
        for recipe in recipes
        if recipe != "none"
    }
    if not ordered:
        return fitted
    for layer in moments:
        fitted[layer.layer, "none"] = _unchanged(layer)
    of_layer = {layer.layer: layer for layer in moments}
    return {key: ordered_layer(transform, of_layer[key[0]]) for key, transform in fitted.items()}


def transform_of(
    assignment: Assignment, fitted: Fitted, model: ModelId, provenance: Mapping[str, str | int | float]
) -> KVTransform:
    """Put a transform together from what each layer is given."""
    layers = [fitted[layer, recipe] for layer, recipe in assignment if (layer, recipe) in fitted]
    return KVTransform(model, tuple(layers), provenance)


def uniform(layers: Sequence[int], recipe: Recipe) -> Assignment:
    """Give all layers the same."""
    return tuple((layer, recipe) for layer in layers)


def _unchanged(moments: LayerMoments) -> LayerTransform:
    return LayerTransform(moments.layer, np.stack([0 * head.key_mean for head in moments.heads]))


def _fit(moments: LayerMoments, recipe: Recipe) -> LayerTransform:
    *centre, kind = recipe.split(", ")
    known = next(name for name in KINDS if name == kind)
    shrink = SHRINK if known == "balanced" else 0.0
    return fit_layer(moments, known, FitOptions(FLOOR, shrink, bool(centre) or known == "centre"))
