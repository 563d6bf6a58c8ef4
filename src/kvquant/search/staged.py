"""The search itself: what to measure next, which policies to choose from it, and what came of them.

Nothing here runs a model. A meter, handed in, returns the KL of policies on two texts; the stages only decide
what it is asked. With the same answers they come to the same end, which is what makes a journal enough to go
on from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kvquant.errors import UsageError
from kvquant.policy import parse_policy
from kvquant.results.search import Kl
from kvquant.search.costs import (
    Cost,
    Floor,
    can_show,
    coarsest,
    finest,
    format_noise,
    gained_costs,
    side_costs,
)
from kvquant.search.knapsack import choose, choose_within_error
from kvquant.search.problem import Chosen, Costs, Meter, Problem, Verified
from kvquant.search.rivals import Hints, Rival, Room
from kvquant.search.sides import EXACT, Assignment, Side, assignment_of, policy_of, side_bytes, sides_of

N_DRAWS = 6
"""Candidates chosen by costs as they could have been, given their noise, besides the one by the costs."""

N_SWAPS = 6
"""Changes of the best policy that are measured in one round."""

MOST_ROUNDS = 3

MOST_STEPS = 6
"""Policies of growing size that are measured to find the smallest within a limit of KL."""

N_PROBES = 5
"""Layers, evenly spread, at which the floor of a change is measured."""

FRONT_SHARES = (0.0, 0.12, 0.25, 0.5, 1.0)
"""Where the front is shown: shares of the way from the smallest policy to the finest type but f16."""


class Search:
    """One model and one set of types; its stages, in their order, are `costs`, `verify` and `front`.

    say: told what begins.
    """

    def __init__(
        self, problem: Problem, meter: Meter, hints: Hints, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.problem = problem
        self.sides = sides_of(problem.shape)
        self.sizes = side_bytes(problem.shape, problem.types, problem.options)
        self._meter = meter
        self._hints = hints
        self.say = say
        if problem.budget is not None:
            self.room(problem.budget)  # refuse before anything is measured

    @property
    def kv_bytes_f16(self) -> int:
        """What everything in f16 takes."""
        return sum(self.sizes[place, EXACT] for place in self.sides)

    def room(self, budget: int) -> Room:
        """Return the problem within so many bytes. Raises UsageError where nothing fits."""
        choose(
            [[(self.sizes[place, name], 0.0) for name in self.problem.types] for place in self.sides], budget
        )
        return Room(self.sides, self.sizes, self.problem.types, budget)

    def n_bytes(self, policy: str) -> int:
        """Return what a policy takes."""
        types = assignment_of(parse_policy(policy), self.problem.shape)
        known = {**self.sizes, **self._other_sizes(types)}
        return sum(known[place, name] for place, name in types.items())

    def _other_sizes(self, types: Assignment) -> dict[tuple[Side, str], int]:
        other = tuple(dict.fromkeys(name for name in types.values() if name not in self.problem.types))
        return side_bytes(self.problem.shape, other, self.problem.options) if other else {}

    # ---- measuring ----

    def costs(self) -> Costs:
        """Measure every side in the coarsest type, then finer types where they can matter above the noise.

        A side whose coarsest type is not to be told from the floor has nothing finer to show.
        """
        whole = self._meter.floor()
        if self.problem.proxy:
            return self._proxy_costs(Floor.through(whole, {}))
        if self.problem.reverse:
            return self._reverse_costs(Floor.through(whole, {}))
        low, high = coarsest(self.problem.types), finest(self.problem.types)
        probes = self._probes() if high != low else ()
        self.say(f"{low} on one side at a time")
        measured = self._single({place: (low, high) if place in probes else (low,) for place in self.sides})
        floor = Floor.through(whole, {place.layer: measured[place, high] for place in probes})
        finer = {
            place: tuple(
                name
                for name in self.problem.types
                if name not in (low, EXACT) and can_show(measured[place, low], floor, place.layer, name, low)
            )
            for place in self.sides
        }
        if any(finer.values()):
            self.say("finer types where they can matter")
            measured |= self._single(finer)
        return Costs(floor, measured, side_costs(measured, floor, self.sides, self.problem.types))

    def _probes(self) -> tuple[Side, ...]:
        """V of a few layers, which rounds less than K: where the finest type shows little but the floor."""
        values = [place for place in self.sides if place.side != "k"]
        picked = {round(index * (len(values) - 1) / (N_PROBES - 1)) for index in range(N_PROBES)}
        return tuple(values[index] for index in sorted(picked))

    def _single(self, wanted: Mapping[Side, Sequence[str]]) -> dict[tuple[Side, str], Kl]:
        policies = {
            (place, name): str(policy_of({place: name})) for place, names in wanted.items() for name in names
        }
        found = self._meter.measure("fit", list(policies.values()), self.problem.n_side_chunks)
        return {key: found[policy] for key, policy in policies.items()}

    def _reverse_costs(self, floor: Floor) -> Costs:
        """What each side in f16 takes off the KL of the coarsest type everywhere, by paired differences."""
        low = coarsest(self.problem.types)
        base = dict.fromkeys(self.sides, low)
        everywhere = str(policy_of(base))
        raised = {place: str(policy_of({**base, place: EXACT})) for place in self.sides}
        self.say(f"one side at a time in {EXACT}, the others in {low}")
        found = self._meter.measure("fit", [everywhere, *raised.values()], self.problem.n_side_chunks)
        gains = {place: self._meter.difference("fit", everywhere, policy) for place, policy in raised.items()}
        costs = gained_costs(gains, self.sides, self.problem.types)
        offset = found[everywhere].mean - sum(costs[place, low].nats for place in self.sides)
        measured = {(place, low): found[policy] for place, policy in raised.items()}
        return Costs(floor, measured, costs, offset)

    def _proxy_costs(self, floor: Floor) -> Costs:
        """Squared attention-output errors, in units that make all of the coarsest type cost what it does."""
        if self._hints.proxy is None:
            raise UsageError("--quick chooses from a capture; give --capture FILE (kvquant capture)")
        low = coarsest(self.problem.types)
        uniform = str(policy_of(dict.fromkeys(self.sides, low)))
        measured = self._meter.measure("fit", [uniform], self.problem.n_chunks)[uniform]
        total = sum(self._hints.proxy[place, low] for place in self.sides)
        unit = max(measured.mean - floor.base, floor.base) / total if total else 0.0
        costs = {
            (place, name): Cost(self._hints.proxy[place, name] * unit, 0.0, measured=False)
            for place in self.sides
            for name in self.problem.types
        }
        return Costs(floor, {}, costs)

    # ---- choosing and verifying ----

    def verify(self, costs: Costs, room: Room, rivals: Sequence[Rival]) -> Verified:
        """Measure candidates and rivals together on the fitting text; improve the best by swaps that pay.

        A rival that is best is what is returned: nothing is gained by another policy then.
        """
        chosen = Chosen(
            self._choice(costs, room), "by measured costs", "the least sum of costs in these bytes"
        )
        candidates = {chosen.policy: chosen}
        for index, policy in enumerate(self._draws(costs, room), start=1):
            how = "the least sum of costs drawn within their uncertainty"
            candidates.setdefault(policy, Chosen(policy, f"draw {index}", how))
        for rival in rivals:
            candidates.setdefault(rival.policy, Chosen(rival.policy, rival.name, rival.how))
        self.say("policies on the fitting text")
        kl, left = self._race(list(candidates))
        best = candidates[min(left, key=lambda policy: kl[policy].mean)]
        for number in range(1, MOST_ROUNDS + 1):
            swapped = [policy for policy in self._swaps(costs, room, best.policy) if policy not in kl]
            if not swapped:
                break
            self.say(f"swaps, round {number}")
            kl |= self._meter.measure("fit", swapped, self.problem.n_chunks)
            for policy in swapped:
                candidates[policy] = Chosen(policy, f"swap {number}", f"{best.name}, two sides changed")
            top = min(swapped, key=lambda policy: kl[policy].mean)
            _, interval = self._meter.difference("fit", top, best.policy)
            if interval is None or interval.high >= 0:
                break  # no swap is better beyond noise
            best = candidates[top]
        return Verified(best, tuple(candidates.values()), kl)

    def _race(self, policies: Sequence[str]) -> tuple[dict[str, Kl], list[str]]:
        """Measure policies on more and more text, without those that are worse than the best beyond noise.

        Returns what is known of all, and those that are left at the end.
        """
        kl: dict[str, Kl] = {}
        left, n_chunks = list(policies), 1
        while True:
            kl |= self._meter.measure("fit", left, n_chunks)
            if n_chunks >= self.problem.n_chunks:
                return kl, left
            best = min(left, key=lambda policy: kl[policy].mean)
            left = [policy for policy in left if policy == best or not self._is_worse(policy, best)]
            n_chunks = min(2 * n_chunks, self.problem.n_chunks)

    def _is_worse(self, policy: str, other: str) -> bool:
        _, interval = self._meter.difference("fit", policy, other)
        return interval is not None and interval.low > 0

    def smallest_within(self, costs: Costs, max_kl: float) -> Room:
        """Return the room of the fewest bytes whose best policy, as measured, loses at most ``max_kl``.

        Predictions say where to begin; the measured KL says where to go on. Raises UsageError when not even
        the finest types get there.
        """
        floor = costs.floor.base
        if max_kl <= floor:
            raise UsageError(
                f"--max-kl {max_kl:g} is below {floor:.2g}, the difference of a float16 cache "
                "from itself when only the order of sums changes; give a larger limit"
            )
        limit = max_kl - floor
        options = self._options(costs)
        smallest: Room | None = None
        for _ in range(MOST_STEPS):
            budget = choose_within_error(options, limit).n_bytes
            room = self.room(budget)
            if smallest is not None and budget >= smallest.budget:
                break
            policy = self._choice(costs, room)
            self.say("a policy near the limit")
            measured = self._meter.measure("fit", [policy], self.problem.n_chunks)[policy].mean
            if measured <= max_kl:
                smallest = room
                break
            # Where predictions are too low, by as much as they were.
            limit *= max(0.1, min(0.8, (max_kl - floor) / (measured - floor)))
        if smallest is None:
            raise UsageError(
                f"--max-kl {max_kl:g}: no policy of {', '.join(self.problem.types)} that was tried loses as "
                "little; give a larger limit"
            )
        return smallest

    def front(self, costs: Costs) -> list[str]:
        """Return the choices at several sizes between the smallest and the finest type but f16."""
        quantized = [name for name in self.problem.types if name != EXACT]
        least = sum(min(self.sizes[place, name] for name in quantized) for place in self.sides)
        finest = min(quantized, key=format_noise)
        most = sum(self.sizes[place, finest] for place in self.sides)
        budgets = [int(least + share * (most - least)) for share in FRONT_SHARES]
        return list(dict.fromkeys(self._choice(costs, self.room(budget)) for budget in budgets))

    def _options(self, costs: Costs) -> list[list[tuple[int, float]]]:
        return [
            [(self.sizes[place, name], costs.costs[place, name].nats) for name in self.problem.types]
            for place in self.sides
        ]

    def _choice(self, costs: Costs, room: Room) -> str:
        return self._policy(choose(self._options(costs), room.budget).options)

    def _policy(self, options: Sequence[int]) -> str:
        types = {place: self.problem.types[index] for place, index in zip(self.sides, options, strict=True)}
        return str(policy_of(types))

    def _draws(self, costs: Costs, room: Room) -> list[str]:
        """Choices by costs drawn from what they could be: a side's types rise and fall together."""
        rng = np.random.default_rng(self.problem.seed)
        low = coarsest(self.problem.types)
        found: dict[str, None] = {}
        for _ in range(N_DRAWS):
            shifts = rng.standard_normal(len(self.sides))
            options = []
            for place, shift in zip(self.sides, shifts, strict=True):
                base = costs.costs[place, low]
                factor = max(0.1, 1 + shift * base.error / base.nats) if base.nats else 1.0
                options.append(
                    [
                        (self.sizes[place, name], costs.costs[place, name].nats * factor)
                        for name in self.problem.types
                    ]
                )
            found[self._policy(choose(options, room.budget).options)] = None
        return list(found)

    def _swaps(self, costs: Costs, room: Room, policy: str) -> list[str]:
        """The changes of two sides, one finer and one coarser, that promise most or cost least, within bytes.

        Costs say that none of them is better where the policy is the choice by them; which are nearly as good
        is what is worth a measurement.
        """
        types = assignment_of(parse_policy(policy), self.problem.shape)
        n_bytes = room.n_bytes(types)
        changes = [
            (
                costs.costs[place, name].nats - costs.costs[place, types[place]].nats,
                room.sizes[place, name] - room.sizes[place, types[place]],
                place,
                name,
            )
            for place in self.sides
            for name in self.problem.types
            if name != types[place]
        ]
        finer = sorted((change for change in changes if change[1] > 0), key=lambda change: change[0])
        coarser = sorted((change for change in changes if change[1] <= 0), key=lambda change: change[0])
        pairs = [
            (up[0] + down[0], up, down)
            for up in finer[: 4 * N_SWAPS]
            for down in coarser[: 4 * N_SWAPS]
            if up[2] != down[2] and n_bytes + up[1] + down[1] <= room.budget
        ]
        found: dict[str, None] = {}
        used: set[Side] = set()
        for _, up, down in sorted(pairs, key=lambda pair: pair[0]):
            # One swap for each side that grows: six versions of the same change teach little.
            if up[2] not in used:
                used.add(up[2])
                found[str(policy_of({**types, up[2]: up[3], down[2]: down[3]}))] = None
            if len(found) == N_SWAPS:
                break
        return list(found)
