"""A policy as values: which layers a rule names, which types it gives them, and the one normal form."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from kvquant.errors import PolicyError

if TYPE_CHECKING:
    from kvquant.model.shape import ModelShape
    from kvquant.policy.resolve import ResolvedPolicy

MAX_INDEX = 65535
"""The largest layer index or cache position a policy can name."""

_OPEN_END = MAX_INDEX + 1
"""Stands for "and every later one" when ranges are compared; no written number reaches it."""


class Counting(Enum):
    """What the numbers of a rule count."""

    LAYERS = ""
    """Layers of the model, from 0, cached or not."""
    CACHED = "kv"
    """Positions among the layers that keep a cache of their own, from 0."""


@dataclass(frozen=True)
class Rule:
    """Layers ``first``..``last`` (both named; ``last`` None: every later one too) and the types they get.

    ``k_type`` or ``v_type`` None leaves that side to the default; at least one is given.
    """

    counting: Counting
    first: int
    last: int | None
    k_type: str | None
    v_type: str | None

    def __post_init__(self) -> None:
        if not 0 <= self.first <= MAX_INDEX or (self.last is not None and self.last > MAX_INDEX):
            raise PolicyError(
                f"a rule names {self.first}..{self.last}; numbers go from 0 to {MAX_INDEX}", code="number"
            )
        if self.last is not None and self.last < self.first:
            raise PolicyError(f"a rule ends at {self.last}, before its start {self.first}", code="range")
        if self.k_type is None and self.v_type is None:
            raise PolicyError("a rule gives no type, name one for k, v or both", code="syntax")

    @property
    def end(self) -> int:
        """The last number named, larger than any number that can be written when the end is open."""
        return _OPEN_END if self.last is None else self.last

    def __str__(self) -> str:
        return f"{self._selector()}:{self._types()}"

    def _selector(self) -> str:
        prefix = self.counting.value
        if self.counting is Counting.LAYERS and self.first == 0 and self.last is None:
            return "*"
        if self.last is None:
            return f"{prefix}{self.first}-"
        if self.last == self.first:
            return f"{prefix}{self.first}"
        return f"{prefix}{self.first}-{prefix}{self.last}"

    def _types(self) -> str:
        if self.k_type is not None and self.k_type == self.v_type:
            return self.k_type
        sides = (("k", self.k_type), ("v", self.v_type))
        return "/".join(f"{side}={name}" for side, name in sides if name is not None)


@dataclass(frozen=True)
class Policy:
    """Rules in normal form: layers before cache positions, ascending, equal neighbours merged.

    Two policies with the same meaning are equal, and ``parse_policy(str(policy)) == policy``. Raises
    PolicyError (code "empty" or "overlap") when there is no rule or a layer is named twice.
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise PolicyError("a policy needs at least one rule, for example *:q8_0", code="empty")
        clash = first_overlap(self.rules)
        if clash is not None:
            raise PolicyError(f"{overlap_message(self.rules, clash)}; name each layer once", code="overlap")
        object.__setattr__(self, "rules", _merged(self.rules))

    def __str__(self) -> str:
        return ",".join(str(rule) for rule in self.rules)

    def resolve(self, shape: ModelShape, default_k: str = "f16", default_v: str = "f16") -> ResolvedPolicy:
        """Give every cached layer of ``shape`` its K and V type (see ``kvquant.policy.resolve.resolve``)."""
        from kvquant.policy.resolve import resolve

        return resolve(self, shape, default_k=default_k, default_v=default_v)


def policy_from_layers(types: Iterable[tuple[int, str, str]]) -> Policy:
    """The policy that gives each (layer, k type, v type) of ``types`` exactly those types."""
    return Policy(tuple(Rule(Counting.LAYERS, layer, layer, k, v) for layer, k, v in types))


def first_overlap(rules: Sequence[Rule]) -> int | None:
    """Index of the first rule that names something an earlier rule names, or None.

    Layers and cache positions can only be compared on a model, with one exception: rules that together name
    every layer leave nothing for a cache position to name.
    """
    taken: dict[Counting, list[tuple[int, int]]] = {counting: [] for counting in Counting}
    n_named = dict.fromkeys(Counting, 0)
    for index, rule in enumerate(rules):
        spans = taken[rule.counting]
        at = bisect_left(spans, (rule.first, rule.end))
        if (at > 0 and spans[at - 1][1] >= rule.first) or (at < len(spans) and spans[at][0] <= rule.end):
            return index
        spans.insert(at, (rule.first, rule.end))
        n_named[rule.counting] += rule.end - rule.first + 1
        if n_named[Counting.LAYERS] == _OPEN_END + 1 and taken[Counting.CACHED]:
            return index
    return None


def overlap_message(rules: Sequence[Rule], index: int) -> str:
    """Say which earlier rule the rule at ``index``, found by ``first_overlap``, clashes with."""
    rule = rules[index]
    for earlier in rules[:index]:
        same_kind = earlier.counting is rule.counting
        if same_kind and earlier.first <= rule.end and rule.first <= earlier.end:
            return f"'{rule}' names layers that '{earlier}' already names"
    return f"'{rule}' joins layer rules for every layer and kv rules in one policy"


def _merged(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    merged: list[Rule] = []
    for rule in sorted(rules, key=lambda rule: (rule.counting is Counting.CACHED, rule.first)):
        if merged and _adjoins(merged[-1], rule):
            merged[-1] = replace(merged[-1], last=rule.last)
        else:
            merged.append(rule)
    return tuple(merged)


def _adjoins(left: Rule, right: Rule) -> bool:
    same_types = (left.k_type, left.v_type) == (right.k_type, right.v_type)
    return left.counting is right.counting and same_types and left.end + 1 == right.first
