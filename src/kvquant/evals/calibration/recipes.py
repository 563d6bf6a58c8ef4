"""What a layer can be given, and transforms put together from what each layer is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

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

Recipe = Literal["none", "centre", "diagonal", "centre, diagonal", "balanced", "centre, balanced"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
"""From the cheapest to compute with to the dearest: nothing, a subtraction, products, both, matrices."""

SHRINK = 0.1
"""How far the balanced kind's moments are drawn towards their diagonals; it helped on all three models of
docs/transform.md, where the full moments of few tokens do not carry over."""

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


def fit_recipes(moments: Sequence[LayerMoments], recipes: Sequence[Recipe]) -> Fitted:
    """Fit every layer by every recipe but "none"."""
    return {
        (layer.layer, recipe): _fit(layer, recipe)
        for layer in moments
        for recipe in recipes
        if recipe != "none"
    }


def transform_of(
    assignment: Assignment, fitted: Fitted, model: ModelId, provenance: Mapping[str, str | int | float]
) -> KVTransform:
    """Put a transform together from what each layer is given."""
    layers = [fitted[layer, recipe] for layer, recipe in assignment if recipe != "none"]
    return KVTransform(model, tuple(layers), provenance)


def uniform(layers: Sequence[int], recipe: Recipe) -> Assignment:
    """Give all layers the same."""
    return tuple((layer, recipe) for layer in layers)


def _fit(moments: LayerMoments, recipe: Recipe) -> LayerTransform:
    *centre, kind = recipe.split(", ")
    known = next(name for name in KINDS if name == kind)
    shrink = SHRINK if known == "balanced" else 0.0
    return fit_layer(moments, known, FitOptions(FLOOR, shrink, bool(centre) or known == "centre"))
