"""What a search is given, asks, and finds on its way: the values that its stages hand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kvquant.memory import ContextOptions
from kvquant.model.shape import ModelShape
from kvquant.results.comparison import Interval
from kvquant.results.search import Kl
from kvquant.search.costs import Cost, Floor
from kvquant.search.sides import EXACT, Assignment, Side

Part = Literal["fit", "held-out"]
"""Which text: the one that policies are chosen on, or the one that they are compared on."""


class Meter(Protocol):
    """What measures; `kvquant.evals.search_meter.Meter` is one."""

    def floor(self) -> Kl: ...

    def measure(self, part: Part, policies: Sequence[str], n_chunks: int) -> Mapping[str, Kl]: ...

    def difference(self, part: Part, policy: str, other: str) -> tuple[float, Interval | None]: ...


@dataclass(frozen=True)
class Problem:
    """What is looked for.

    types: that may be used, f16 among them. budget: bytes for K and V, or None with max_kl, a limit of the
    KL on the fitting text, nats. n_side_chunks, n_chunks, n_held_out_chunks: text for single sides, for
    policies, and for the comparison. proxy: choose by the hints' attention-output errors, not by measured
    sides. reverse: measure a side as the only one in f16, all others in the coarsest type, instead of as the
    only one that is not.
    """

    shape: ModelShape
    types: tuple[str, ...]
    options: ContextOptions
    budget: int | None
    max_kl: float | None
    n_side_chunks: int = 1
    n_chunks: int = 1
    n_held_out_chunks: int = 1
    proxy: bool = False
    reverse: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Costs:
    """What every type costs on every side, and the measurements behind that, empty where a proxy stood in.

    offset: what predictions start from where that is not the floor: measured in reverse, the KL of the
    coarsest type everywhere without the costs of all sides.
    """

    floor: Floor
    measured: Mapping[tuple[Side, str], Kl]
    costs: Mapping[tuple[Side, str], Cost]
    offset: float | None = None

    def predict(self, types: Assignment) -> float:
        """Return the KL of a policy if costs add up: on top of the floor of the first change, nats."""
        total = sum(self.costs[place, name].nats for place, name in types.items())
        changed = [place.layer for place, name in types.items() if name != EXACT]
        if not changed:
            return 0.0
        floor = self.floor.at(min(changed))
        return floor + total if self.offset is None else max(floor, self.offset + total)


@dataclass(frozen=True)
class Chosen:
    """A policy and what led to it."""

    policy: str
    name: str
    how: str


@dataclass(frozen=True)
class Verified:
    """The candidates and the rivals that fit, measured on the fitting text, and the best of them."""

    best: Chosen
    candidates: tuple[Chosen, ...]
    kl: Mapping[str, Kl]
