"""Rules as values: which layers one names, which types it gives them, and the one normal form of several."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from kvquant.errors import PolicyError

MAX_INDEX = 65535
"""The largest layer index, cache position or distance from the end that a policy can name."""

_OPEN_END = MAX_INDEX + 1
"""Stands for "and every later one" when ranges are compared; no written number reaches it."""


class Counting(Enum):
    """What the numbers of a rule count; the members stand in the order of the normal form."""

    LAYERS = ""
    """Layers of the model, from 0, cached or not."""
    LAST = "last"
    """Layers of the model from the end: 1 is the last one."""
    CACHED = "kv"
    """Positions among the layers that keep a cache of their own, from 0."""
    LAST_CACHED = "kvlast"
    """Layers that keep a cache of their own, from the end: 1 is the last one."""
    REST = "rest"
    """Nothing: the layers that no other rule names."""

    @property
    def cached(self) -> bool:
        """Layers without a cache of their own are passed over."""
        return self in (Counting.CACHED, Counting.LAST_CACHED)

    @property
    def from_end(self) -> bool:
        """1 is the last layer."""
        return self in (Counting.LAST, Counting.LAST_CACHED)


_ORDER = list(Counting)

# Rules of the first way of counting that name everything leave no layer to a rule of the others. Any other
# two ways of counting can only be compared on a model.
_LEAVES_NOTHING = {
    Counting.LAYERS: frozenset(Counting) - {Counting.LAYERS},
    Counting.CACHED: frozenset({Counting.LAST_CACHED, Counting.REST}),
}


@dataclass(frozen=True)
class Rule:
    """Layers ``first``..``last`` (both named; ``last`` None: every later one too) and the types they get.

    Counted from the end, ``first`` is the number nearer to the end: 1..2 are the last two. A rule for the
    rest has ``first`` 0 and ``last`` None. ``k_type`` or ``v_type`` None leaves that side to the default; at
    least one is given.
    """

    counting: Counting
    first: int
    last: int | None
    k_type: str | None
    v_type: str | None

    def __post_init__(self) -> None:
        least = int(self.counting.from_end)
        if not least <= self.first <= MAX_INDEX or (self.last is not None and self.last > MAX_INDEX):
            raise PolicyError(
                f"a rule names {self.first}..{self.last}; numbers go from {least} to {MAX_INDEX}",
                code="number",
            )
        if self.last is not None and self.last < self.first:
            raise PolicyError(f"a rule ends at {self.last}, before its start {self.first}", code="range")
        if self.counting.from_end and self.last is None:
            raise PolicyError("a rule that counts from the end needs both ends", code="range")
        if self.counting is Counting.REST and (self.first, self.last) != (0, None):
            raise PolicyError("a rule for the rest takes no numbers", code="range")
        if self.k_type is None and self.v_type is None:
            raise PolicyError("a rule has no type; give one for k, v or both", code="syntax")

    @property
    def end(self) -> int:
        """The last number named, larger than any number that can be written when the end is open."""
        return _OPEN_END if self.last is None else self.last

    @property
    def types(self) -> tuple[str | None, str | None]:
        """The K and the V type, None for a side left to the default."""
        return self.k_type, self.v_type

    def __str__(self) -> str:
        return f"{self._selector()}:{self._types()}"

    def _selector(self) -> str:
        prefix = self.counting.value
        if self.counting is Counting.REST:
            return prefix
        if self.counting.from_end:
            alone = f"{prefix}{self.last}"
            return alone if self.first == 1 else f"{alone}-{prefix}{self.first}"
        if self.last is None:
            return "*" if self.counting is Counting.LAYERS and self.first == 0 else f"{prefix}{self.first}-"
        return f"{prefix}{self.first}" + ("" if self.last == self.first else f"-{prefix}{self.last}")

    def _types(self) -> str:
        if self.k_type is not None and self.k_type == self.v_type:
            return self.k_type
        sides = (("k", self.k_type), ("v", self.v_type))
        return "/".join(f"{side}={name}" for side, name in sides if name is not None)


def first_overlap(rules: Sequence[Rule]) -> int | None:
    """Index of the first rule that names something an earlier rule names, or None.

    Two ways of counting can only be compared on a model, except where one of them has named every layer.
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
        for counting, others in _LEAVES_NOTHING.items():
            if n_named[counting] == _OPEN_END + 1 and any(taken[other] for other in others):
                return index
    return None


def overlap_message(rules: Sequence[Rule], index: int) -> str:
    """Say what the rule at ``index``, found by ``first_overlap``, clashes with, and the way out."""
    rule = rules[index]
    for earlier in rules[:index]:
        if earlier.counting is rule.counting and earlier.first <= rule.end and rule.first <= earlier.end:
            others = f"; rest:{rule._types()} names those no other rule does" if _names_every(rule) else ""
            return f"'{rule}' names layers that '{earlier}' already names; name each layer once{others}"
    return (
        f"with '{rule}', rules for every layer stand beside rules that count otherwise; name each layer once"
    )


def _names_every(rule: Rule) -> bool:
    return rule.counting is Counting.LAYERS and (rule.first, rule.last) == (0, None)


def normal_form(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The one way to write ``rules``, which do not overlap: sorted, equal neighbours merged.

    Where all rules count in one way, a rule for the rest is replaced by the ranges it stands for, or, counted
    from the end, takes in the rules with its own types.
    """
    found = list(rules)
    rest = next((rule for rule in found if rule.counting is Counting.REST), None)
    others = [rule for rule in found if rule.counting is not Counting.REST]
    countings = {rule.counting for rule in others}
    if rest is not None and len(countings) <= 1:
        counting = countings.pop() if countings else Counting.LAYERS
        if counting.from_end:
            others = [rule for rule in others if rule.types != rest.types]
            found = [*others, rest] if others else [replace(rest, counting=Counting.LAYERS)]
        else:
            found = [*others, *_gaps(sorted(others, key=_place), replace(rest, counting=counting))]
    return tuple(_merged(sorted(found, key=_place)))


def _place(rule: Rule) -> tuple[int, int]:
    return _ORDER.index(rule.counting), -rule.first if rule.counting.from_end else rule.first


def _gaps(ascending: Iterable[Rule], filler: Rule) -> Iterator[Rule]:
    """The ranges that ``ascending`` leaves, each as a rule with the filler's types."""
    first = 0
    for rule in ascending:
        if rule.first > first:
            yield replace(filler, first=first, last=rule.first - 1)
        first = rule.end + 1
    if first <= MAX_INDEX:
        yield replace(filler, first=first)


def _merged(ordered: Iterable[Rule]) -> list[Rule]:
    merged: list[Rule] = []
    for rule in ordered:
        left = merged[-1] if merged else None
        if left is None or left.counting is not rule.counting or left.types != rule.types:
            merged.append(rule)
        elif rule.counting.from_end and rule.end + 1 == left.first:
            merged[-1] = replace(left, first=rule.first)
        elif not rule.counting.from_end and left.end + 1 == rule.first:
            merged[-1] = replace(left, last=rule.last)
        else:
            merged.append(rule)
    return merged
