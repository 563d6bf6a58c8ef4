"""A policy on a model: which type the K and the V cache of every layer gets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvquant.errors import PolicyError
from kvquant.policy.messages import unknown
from kvquant.policy.rules import Counting, Policy, Rule
from kvquant.policy.types import TypeNames

if TYPE_CHECKING:
    from kvquant.model.shape import ModelShape


@dataclass(frozen=True)
class ResolvedLayer:
    """One layer that keeps a cache: its global index, its position among such layers, its two types."""

    layer: int
    kv_index: int
    k_type: str
    v_type: str


@dataclass(frozen=True)
class PolicyWarning:
    """Something a policy says that has no, or less, effect on this model.

    ``code`` is "clipped" (a rule names layers past the end) or "no-effect" (a rule names only layers that
    keep no cache of their own, or no layer at all); ``str()`` gives the message.
    """

    code: str
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class ResolvedPolicy:
    """The types of every layer that keeps a cache, in layer order, with what the user should hear about."""

    layers: tuple[ResolvedLayer, ...]
    warnings: tuple[PolicyWarning, ...]


def resolve(
    policy: Policy, shape: ModelShape, default_k: str = "f16", default_v: str = "f16"
) -> ResolvedPolicy:
    """Give every layer of ``shape`` that keeps a cache exactly one K and one V type.

    A side no rule names gets its default. Raises PolicyError: code "type" for an unknown default, "overlap"
    when a rule by layer and a rule by cache position name the same layer.
    """
    defaults = (_known(default_k), _known(default_v))
    kv_layers = shape.kv_layers
    kv_index = {layer: index for index, layer in enumerate(kv_layers)}
    ruled: dict[int, Rule] = {}
    warnings: list[PolicyWarning] = []
    for rule in policy.rules:
        named = _named_layers(rule, shape.n_layer, kv_layers)
        cached = [layer for layer in named if layer in kv_index]
        warnings += _warnings(rule, shape, cached)
        for layer in cached:
            if layer in ruled:
                raise PolicyError(
                    f"policy: '{ruled[layer]}' and '{rule}' both name layer {layer} (kv{kv_index[layer]}) "
                    f"of {shape.name}; name each layer once",
                    code="overlap",
                )
            ruled[layer] = rule
    layers = (
        ResolvedLayer(layer, index, *_types(ruled.get(layer), defaults)) for layer, index in kv_index.items()
    )
    return ResolvedPolicy(tuple(layers), tuple(warnings))


def _named_layers(rule: Rule, n_layer: int, kv_layers: tuple[int, ...]) -> Iterable[int]:
    every = kv_layers if rule.counting is Counting.CACHED else range(n_layer)
    return every[rule.first : rule.end + 1]


def _warnings(rule: Rule, shape: ModelShape, cached: list[int]) -> Iterable[PolicyWarning]:
    by_layer = rule.counting is Counting.LAYERS
    n_there = shape.n_layer if by_layer else len(shape.kv_layers)
    if rule.last is not None and rule.last >= n_there:
        what = "layers" if by_layer else "layers with a cache"
        yield PolicyWarning(
            "clipped", f"policy: '{rule}' goes past the end, {shape.name} has {n_there} {what}"
        )
    if not cached:
        yield PolicyWarning(
            "no-effect",
            f"policy: '{rule}' has no effect, it names no layer of {shape.name} that keeps a cache",
        )


def _types(rule: Rule | None, defaults: tuple[str, str]) -> tuple[str, str]:
    if rule is None:
        return defaults
    k_default, v_default = defaults
    return rule.k_type or k_default, rule.v_type or v_default


def _known(name: str) -> str:
    folded = name.lower()
    types = TypeNames(None)
    if folded not in types:
        raise PolicyError(f"default: {unknown('type', folded, types)}", code="type")
    return folded
