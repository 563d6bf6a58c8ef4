"""A meter that knows the truth, and what searches are made of that ask it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvquant.memory import ContextOptions
from kvquant.model.presets import load_shape
from kvquant.policy import parse_policy
from kvquant.results.comparison import Interval
from kvquant.results.divergence import FileUsed
from kvquant.results.search import Kl, SearchResult, SearchStart
from kvquant.search.costs import format_noise
from kvquant.search.outcome import compare, document
from kvquant.search.problem import Part, Problem
from kvquant.search.rivals import Hints, rivals_within
from kvquant.search.sides import Side, assignment_of, sides_of
from kvquant.search.staged import Search

SHAPE = load_shape("qwen2.5-0.5b")
TYPES = ("f16", "q8_0", "q5_0", "q4_0")
SIDES = sides_of(SHAPE)
HEAVY = {Side(0, "k"): 0.5, Side(7, "k"): 0.2, Side(23, "v"): 0.1}
FLOOR = 0.003
START = SearchStart(
    1, FileUsed("m.gguf", "0"), FileUsed("a", "1"), FileUsed("b", "2"), 256, 64, True, None, None
)


class TrueMeter:
    """KL is the floor and a sum of costs; joint: what a pair of sides costs besides."""

    def __init__(self, joint: dict[frozenset[Side], float] | None = None) -> None:
        self.joint = joint or {}
        self.asked: list[tuple[Part, str, int]] = []

    def truth(self, policy: str) -> float:
        types = assignment_of(parse_policy(policy), SHAPE)
        low = format_noise("q4_0")
        total = sum(HEAVY.get(side, 0.0005) * format_noise(name) / low for side, name in types.items())
        coarse = {side for side, name in types.items() if name in ("q4_0", "q5_0")}
        total += sum(cost for pair, cost in self.joint.items() if pair <= coarse)
        return FLOOR + total

    def floor(self) -> Kl:
        return Kl(FLOOR, Interval(FLOOR * 0.99, FLOOR * 1.01), 191)

    def measure(self, part: Part, policies: Sequence[str], n_chunks: int) -> dict[str, Kl]:
        self.asked += [(part, policy, n_chunks) for policy in policies]
        found = {policy: self.truth(policy) for policy in policies}
        return {
            policy: Kl(kl, Interval(kl - 1e-4, kl + 1e-4), 191 * n_chunks) for policy, kl in found.items()
        }

    def difference(self, _part: Part, policy: str, other: str) -> tuple[float, Interval]:
        found = self.truth(policy) - self.truth(other)
        return found, Interval(found - 1e-5, found + 1e-5)


def problem(share: float | None = 0.3, **settings: object) -> Problem:
    options = ContextOptions(4096, 1)
    search = Search(Problem(SHAPE, TYPES, options, None, 0.1), TrueMeter(), Hints())
    budget = None if share is None else int(share * search.kv_bytes_f16)
    return replace(Problem(SHAPE, TYPES, options, budget, None), **settings)  # type: ignore[arg-type]


def found(share: float = 0.35, hints: Hints | None = None, n_random: int = 5) -> SearchResult:
    """Return the document of a whole search."""
    hints, meter = hints or Hints(), TrueMeter()
    search = Search(problem(share), meter, hints)
    costs, room = search.costs(), search.room(search.problem.budget or 0)
    rivals, left_out = rivals_within(room, hints, SHAPE.n_layer)
    outcome = compare(search, meter, costs, room, rivals, left_out, n_random=n_random)
    return document(search, meter, outcome, hints, START, {"argv": ["kvquant", "search"], "seconds": 1.0})
