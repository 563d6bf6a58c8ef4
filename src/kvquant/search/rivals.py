"""Policies that need no search: rules people use, and methods of others as far as a policy can say them.

Every rule is grown until the next step would not fit the bytes, so that all are compared at equal bytes.
Methods that need gradients (KVmix, PM-KVQ) are not here: a GGUF file gives none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kvquant.errors import UsageError
from kvquant.policy import NAMED
from kvquant.results.search import LeftOut
from kvquant.search.costs import coarsest, format_noise
from kvquant.search.knapsack import choose
from kvquant.search.sides import EXACT, Assignment, Side, policy_of

FINE = "q8_0"
"""What rules keep the layers in that they take to matter."""

MOST_PAIRS = 4
N_RANDOM = 30


@dataclass(frozen=True)
class Rival:
    """A policy by a rule. how: what it was built by, and where that comes from."""

    name: str
    policy: str
    how: str


@dataclass(frozen=True)
class Hints:
    """What rules want to know of a model.

    k_bias_layers: where the K bias stands out, None where the file holds none. weight_norms: Frobenius norm
    of the projection behind each side, None where it cannot be read. proxy: the squared attention-output
    error of each type on each side on a capture, None without one.
    """

    k_bias_layers: Sequence[int] | None = None
    weight_norms: Mapping[Side, float] | None = None
    proxy: Mapping[tuple[Side, str], float] | None = None


@dataclass(frozen=True)
class Room:
    """The sides of a model, what each takes in each type, and the bytes that a policy may take."""

    sides: tuple[Side, ...]
    sizes: Mapping[tuple[Side, str], int]
    types: tuple[str, ...]
    budget: int
    layers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(dict.fromkeys(place.layer for place in self.sides)))

    def n_bytes(self, types: Assignment) -> int:
        """Return what a type for every side takes."""
        return sum(self.sizes[place, types[place]] for place in self.sides)

    def fits(self, types: Assignment) -> bool:
        """Whether it is within the budget."""
        return self.n_bytes(types) <= self.budget

    def uniform(self, k_type: str, v_type: str | None = None) -> dict[Side, str]:
        """Return one type for every K and one for every V."""
        return {place: (v_type or k_type) if place.side == "v" else k_type for place in self.sides}

    def fine_layers(self, layers: Iterable[int]) -> dict[Side, str]:
        """Return FINE in ``layers``, the coarsest type in the others."""
        chosen = set(layers)
        low = coarsest(self.types)
        return {place: FINE if place.layer in chosen else low for place in self.sides}


def rivals_within(room: Room, hints: Hints, shape_layers: int) -> tuple[list[Rival], list[LeftOut]]:
    """Return every rule that fits the budget, each policy once, and those that do not, with the reason.

    shape_layers: layers of the model, those without a cache included. Rules that keep something in FINE need
    it among the types.
    """
    found: dict[str, Rival] = {}
    left_out: list[LeftOut] = []
    for name, types, how in [
        *_uniform(room),
        *_pairs(room),
        *(_rules(room, hints, shape_layers) if FINE in room.types else ()),
    ]:
        if types is None or not room.fits(types):
            left_out.append(LeftOut(name, "more bytes than the budget" if types is not None else how))
            continue
        policy = str(policy_of(types))
        if policy in found:
            left_out.append(LeftOut(name, f"the same policy as {found[policy].name}"))
        else:
            found[policy] = Rival(name, policy, how)
    return list(found.values()), left_out


_Rule = tuple[str, "dict[Side, str] | None", str]


def _uniform(room: Room) -> Iterator[_Rule]:
    for name in room.types:
        if name != EXACT:
            yield name, room.uniform(name), "one type everywhere"


def _pairs(room: Room) -> Iterator[_Rule]:
    """The pairs of two types that leave the least of the budget unused."""
    if any(place.side == "kv" for place in room.sides):
        return
    pairs = [
        (f"K {k}, V {v}", room.uniform(k, v), "one type for all K, another for all V")
        for k in room.types
        for v in room.types
        if k != v and EXACT not in (k, v)
    ]
    fitting = [pair for pair in pairs if room.fits(pair[1])]
    yield from sorted(fitting, key=lambda pair: -room.n_bytes(pair[1]))[:MOST_PAIRS]


def _rules(room: Room, hints: Hints, shape_layers: int) -> Iterator[_Rule]:
    layers = room.layers
    rest = f"the rest {coarsest(room.types)}"
    for name, order in (
        ("first N", [[layer] for layer in layers]),
        ("last N", [[layer] for layer in reversed(layers)]),
        ("first and last N", [[a, b] for a, b in zip(layers, reversed(layers), strict=True) if a < b]),
    ):
        grown = _grown(room, order)
        n = len(grown)
        if not n:
            yield f"{name} {FINE}", None, "not one layer fits"
            continue
        chosen = [layer for step in grown for layer in step]
        yield f"{name.replace('N', str(n))} {FINE}", room.fine_layers(chosen), f"{FINE} there, {rest}"
    for name, inverse in (("hybrid", False), ("its mirror", True)):
        yield _hybrid(room, name, inverse, shape_layers)
    if hints.k_bias_layers:
        yield (
            "K bias",
            {**room.uniform(coarsest(room.types)), **dict.fromkeys(_k_of(room, hints.k_bias_layers), FINE)},
            f"K in {FINE} where the bias of K stands out (kvquant doctor), {rest}",
        )
    if hints.weight_norms:
        ranked = sorted(
            (place for place in room.sides if place in hints.weight_norms),
            key=lambda place: -hints.weight_norms[place],  # type: ignore[index]
        )
        yield (
            "weight norms",
            _grown_sides(room, ranked),
            f"{FINE} in the order of the Frobenius norms of the K and V projections, as PyPI's kvq ranks "
            f"layers; {rest}",
        )
    if hints.proxy:
        yield (
            "capture proxy",
            _by_proxy(room, hints.proxy),
            ("the least sum of squared attention-output errors on a capture: kvquant search without a text"),
        )
        yield (
            "KVTuner's pairs",
            _kvtuner(room, hints.proxy),
            (
                "8 and 4 bits in pairs by layer, K never coarser than V, with the least attention-output "
                "error (KVTuner, arXiv 2502.04420, without its grouping of layers)"
            ),
        )


def _grown(room: Room, order: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The longest beginning of ``order`` whose layers fit in FINE."""
    steps: list[Sequence[int]] = []
    for step in order:
        if not room.fits(room.fine_layers([layer for part in [*steps, step] for layer in part])):
            break
        steps.append(step)
    return steps


def _grown_sides(room: Room, ranked: Sequence[Side]) -> dict[Side, str]:
    types = room.uniform(coarsest(room.types))
    for place in ranked:
        grown = {**types, place: FINE}
        if not room.fits(grown):
            break
        types = grown
    return types


def _hybrid(room: Room, name: str, inverse: bool, shape_layers: int) -> _Rule:
    """The preset: layers 0-10 in q8_0, the others in q4_0; its mirror has them the other way round."""
    text = NAMED["hybrid"]
    first = {layer for layer in room.layers if layer <= 10}
    if "q4_0" not in room.types or shape_layers <= len(first):
        return name, None, "the model has no more than 11 layers, or q4_0 is not among the types"
    fine = set(room.layers) - first if inverse else first
    types = {place: FINE if place.layer in fine else "q4_0" for place in room.sides}
    return name, types, f"the preset {text}" if not inverse else "q4_0 in layers 0-10, q8_0 in the others"


def _k_of(room: Room, layers: Sequence[int]) -> list[Side]:
    return [place for place in room.sides if place.layer in layers and place.side != "v"]


def _by_proxy(room: Room, proxy: Mapping[tuple[Side, str], float]) -> dict[Side, str] | None:
    options = [[(room.sizes[place, name], proxy[place, name]) for name in room.types] for place in room.sides]
    try:
        taken = choose(options, room.budget).options
    except UsageError:
        return None
    return {place: room.types[index] for place, index in zip(room.sides, taken, strict=True)}


def _kvtuner(room: Room, proxy: Mapping[tuple[Side, str], float]) -> dict[Side, str] | None:
    low = coarsest(room.types)
    if any(place.side == "kv" for place in room.sides):
        return None
    pairs = ((FINE, FINE), (FINE, low), (low, low))
    options = [
        [
            (
                room.sizes[Side(layer, "k"), k] + room.sizes[Side(layer, "v"), v],
                proxy[Side(layer, "k"), k] + proxy[Side(layer, "v"), v],
            )
            for k, v in pairs
        ]
        for layer in room.layers
    ]
    try:
        taken = choose(options, room.budget).options
    except UsageError:
        return None
    types: dict[Side, str] = {}
    for layer, index in zip(room.layers, taken, strict=True):
        types[Side(layer, "k")], types[Side(layer, "v")] = pairs[index]
    return types


def random_policies(room: Room, seed: int = 0, n: int = N_RANDOM) -> list[str]:
    """Return policies of nearly the budget's bytes, each different, without regard to what anything costs.

    Sides in a random order get a random type of those that fit until nothing larger fits anywhere.
    """
    rng = np.random.default_rng(seed)
    order = sorted(room.types, key=lambda name: (format_noise(name), name))
    finer = {name: order[:index] for index, name in enumerate(order)}
    found: dict[str, None] = {}
    for _ in range(20 * n):
        types = room.uniform(coarsest(room.types))
        left = room.budget - room.n_bytes(types)
        grew = True
        while grew:
            grew = False
            for index in rng.permutation(len(room.sides)):
                place = room.sides[index]
                fitting = [
                    name
                    for name in finer[types[place]]
                    if 0 < room.sizes[place, name] - room.sizes[place, types[place]] <= left
                ]
                if fitting:
                    chosen = fitting[int(rng.integers(len(fitting)))]
                    left -= room.sizes[place, chosen] - room.sizes[place, types[place]]
                    types[place] = chosen
                    grew = True
                    break
        found[str(policy_of(types))] = None
        if len(found) == n:
            break
    return list(found)
