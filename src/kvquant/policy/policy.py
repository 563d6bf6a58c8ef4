"""A policy, and what it means on a model: which type the K and the V cache of every layer gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvquant.errors import PolicyError
from kvquant.policy.grammar import TypeNames, parse_rules
from kvquant.policy.messages import unknown
from kvquant.policy.rules import Counting, Rule, first_overlap, normal_form, overlap_message

if TYPE_CHECKING:
    from collections.abc import Collection

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

    ``code`` is "clipped" (a rule names layers past the end, or before the start) or "no-effect" (a rule names
    only layers that keep no cache of their own, or no layer at all); ``str()`` gives the message.
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


@dataclass(frozen=True)
class Policy:
    """Rules in normal form: by way of counting, ascending, equal neighbours merged.

    Two policies with the same meaning are equal, and ``parse_policy(str(policy)) == policy``. Raises
    PolicyError (code "empty" or "overlap") when there is no rule or a layer is named twice.
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise PolicyError("a policy needs at least one rule, for example *:q8_0", code="empty")
        clash = first_overlap(self.rules)
        if clash is not None:
            raise PolicyError(overlap_message(self.rules, clash), code="overlap")
        object.__setattr__(self, "rules", normal_form(self.rules))

    def __str__(self) -> str:
        return ",".join(str(rule) for rule in self.rules)

    def resolve(self, shape: ModelShape, default_k: str = "f16", default_v: str = "f16") -> ResolvedPolicy:
        """Give every layer of ``shape`` that keeps a cache exactly one K and one V type.

        A side no rule names gets its default. Raises PolicyError: code "type" for an unknown default,
        "overlap" when rules that count in different ways name the same layer.
        """
        defaults = (_known(default_k), _known(default_v))
        kv_index = {layer: index for index, layer in enumerate(shape.kv_layers)}
        ruled: dict[int, Rule] = {}
        warnings: list[PolicyWarning] = []
        for rule in self.rules:  # the rest comes last
            if rule.counting is Counting.REST:
                cached = [layer for layer in kv_index if layer not in ruled]
            else:
                cached = [layer for layer in _named(rule, shape) if layer in kv_index]
            warnings += _warnings(rule, shape, cached)
            for layer in cached:
                if layer in ruled:
                    raise PolicyError(
                        f"policy: '{ruled[layer]}' and '{rule}' both name layer {layer} "
                        f"(kv{kv_index[layer]}) of {shape.name}; name each layer once",
                        code="overlap",
                    )
                ruled[layer] = rule
        layers = (
            ResolvedLayer(layer, index, *_types(ruled.get(layer), defaults))
            for layer, index in kv_index.items()
        )
        return ResolvedPolicy(tuple(layers), tuple(warnings))


def parse_policy(text: str, types: Collection[str] | None = None, *, where: str = "policy") -> Policy:
    """Read a policy or the name of a preset, knowing the type names ``types`` (None: all of the package).

    where: what the text is called in messages. Raises PolicyError with ``code`` "empty", "preset", "syntax",
    "number", "type", "range" or "overlap" and the 1-based ``line`` and ``column`` of the character at fault
    (one past the end when the text stops too early).
    """
    return Policy(parse_rules(text, TypeNames(types), where))


def policy_document(policy: Policy, resolved: ResolvedPolicy) -> dict[str, object]:
    """Return the JSON form of a policy on a model: its text, the types of each layer, the warnings."""
    return {
        "policy": str(policy),
        "layers": [
            {"layer": s.layer, "kv_index": s.kv_index, "k": {"type": s.k_type}, "v": {"type": s.v_type}}
            for s in resolved.layers
        ],
        "warnings": [{"code": warning.code, "message": warning.message} for warning in resolved.warnings],
    }


def policy_from_layers(types: Iterable[tuple[int, str, str]]) -> Policy:
    """The policy that gives each (layer, k type, v type) of ``types`` exactly those types."""
    return Policy(tuple(Rule(Counting.LAYERS, layer, layer, k, v) for layer, k, v in types))


def _countable(rule: Rule, shape: ModelShape) -> Sequence[int]:
    """The layers that the numbers of a rule count."""
    return shape.kv_layers if rule.counting.cached else range(shape.n_layer)


def _named(rule: Rule, shape: ModelShape) -> Sequence[int]:
    every = _countable(rule, shape)
    if rule.counting.from_end:
        return every[max(0, len(every) - rule.end) : max(0, len(every) - rule.first + 1)]
    return every[rule.first : rule.end + 1]


def _warnings(rule: Rule, shape: ModelShape, cached: list[int]) -> Iterable[PolicyWarning]:
    n_there = len(_countable(rule, shape))
    if rule.last is not None and rule.last >= n_there + rule.counting.from_end:
        what = "layers with a cache" if rule.counting.cached else "layers"
        past = "the start" if rule.counting.from_end else "the end"
        yield PolicyWarning(
            "clipped", f"policy: '{rule}' goes past {past}, {shape.name} has {n_there} {what}"
        )
    if not cached:
        names = "the other rules name every layer" if rule.counting is Counting.REST else "it names no layer"
        yield PolicyWarning(
            "no-effect", f"policy: '{rule}' has no effect, {names} of {shape.name} that keeps a cache"
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
