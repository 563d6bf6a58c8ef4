"""The places of a model where a type can be chosen: one side of one layer that keeps a cache.

A layer that reads another layer's cache has no place of its own, and what a sliding-window layer stores
depends on the context; both follow from the shape and from llama.cpp's own bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvquant.memory import ContextOptions, memory_of
from kvquant.model.shape import ModelShape
from kvquant.policy import Counting, Policy, Rule, parse_policy

EXACT = "f16"
"""The type whose cost is 0: what everything is compared with."""


class Side(NamedTuple):
    """side: k, v, or kv where V is a part of K and both get one type."""

    layer: int
    side: str


Assignment = Mapping[Side, str]
"""A type for every side of a model."""


def sides_of(shape: ModelShape) -> tuple[Side, ...]:
    """Return every side of ``shape`` that has a type of its own, in the order of layers."""
    return tuple(
        Side(layer, side)
        for layer in shape.kv_layers
        for side in (("k", "v") if shape.layers[layer].stores_v else ("kv",))
    )


def side_bytes(
    shape: ModelShape, types: Sequence[str], options: ContextOptions
) -> dict[tuple[Side, str], int]:
    """Return what each side takes in each type, as llama.cpp allocates it.

    Raises FormatError for a type whose blocks do not divide a head, UsageError for options llama.cpp refuses.
    """
    found: dict[tuple[Side, str], int] = {}
    for name in types:
        memory = memory_of(shape, parse_policy(f"*:{name}").resolve(shape), options)
        for layer in memory.layers:
            if shape.layers[layer.layer].stores_v:
                found[Side(layer.layer, "k"), name] = layer.k_bytes
                found[Side(layer.layer, "v"), name] = layer.v_bytes
            else:
                found[Side(layer.layer, "kv"), name] = layer.n_bytes
    return found


def policy_of(types: Assignment) -> Policy:
    """Return the policy that gives every side in ``types`` its type and leaves the others to the default."""
    layers: dict[int, dict[str, str]] = {}
    for place, name in types.items():
        for side in place.side:
            layers.setdefault(place.layer, {})[side] = name
    return Policy(
        tuple(
            Rule(Counting.LAYERS, layer, layer, found.get("k"), found.get("v"))
            for layer, found in sorted(layers.items())
        )
    )


def assignment_of(policy: Policy, shape: ModelShape) -> dict[Side, str]:
    """Return the type that ``policy`` gives to every side of ``shape``."""
    resolved = {entry.layer: entry for entry in policy.resolve(shape).layers}
    return {
        place: resolved[place.layer].v_type if place.side == "v" else resolved[place.layer].k_type
        for place in sides_of(shape)
    }
