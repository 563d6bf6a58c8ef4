"""From single measurements to what each type on each side costs: above the floor, and without their noise.

A single change moves a model's predictions in two ways. It rounds, which is what is looked for; and it sends
every later sum down another path, which costs the same whatever was changed, and less the fewer layers come
after it: the floor. It is taken from the finest type, whose own rounding is hundreds of times smaller, at a
few layers. Costs are what is above the floor, so that they can be added up.

Near the floor a measurement is mostly noise, and a choice among hundreds of noisy numbers picks the luckiest.
So the measured costs of a side's kind are drawn towards their median by as much as their noise explains their
spread (James and Stein 1961). A side that its own noise does not explain stays nearly as it was measured (the
garrote of Gao 1998): a model often has one layer that costs a thousand times what the others do, and such a
layer must neither be drawn to them nor draw them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from statistics import median

import numpy as np

from kvquant.formats.registry import get_format
from kvquant.results.comparison import Interval
from kvquant.results.search import Kl
from kvquant.search.sides import EXACT, Side

Z = 1.96
LEAST_SHARE = 0.05
"""Of the median cost of its kind, what a side costs at least: no measurement shows that one is free."""

APART = 2.0
"""Squared standard errors from the median at which a side begins to count by its own measurement. With 1 a
third of pure noise would; from 4 on predictions of measured policies get worse (eval/results/search).
"""

NORMAL_MAD = 1.4826
"""A normal distribution's standard deviation, in median distances from its median."""

N_VALUES = 32768


@dataclass(frozen=True)
class Cost:
    """nats above the floor, the standard error of that, and whether it was measured or scaled."""

    nats: float
    error: float
    measured: bool


@dataclass(frozen=True)
class Floor:
    """What a change of anything at a layer costs. whole: of every layer, as measured. base, slope: of a line
    through what probes found, nats and nats a layer.
    """

    whole: Kl
    base: float
    slope: float

    @classmethod
    def through(cls, whole: Kl, probes: Mapping[int, Kl]) -> Floor:
        """Return the line of the median slope through probes by layer (Theil and Sen); flat without two."""
        layers = sorted(probes)
        slopes = [(probes[b].mean - probes[a].mean) / (b - a) for a, b in combinations(layers, 2)]
        if not slopes:
            return cls(whole, probes[layers[0]].mean if layers else whole.mean, 0.0)
        slope = min(0.0, median(slopes))
        return cls(whole, median(probes[layer].mean - slope * layer for layer in layers), slope)

    def at(self, layer: int) -> float:
        """Return the floor of a change at ``layer``."""
        return max(0.0, self.base + self.slope * layer)


@cache
def format_noise(type_name: str) -> float:
    """Return the squared error of a type, relative to the values' own square, on normal values.

    What llama.cpp rotates is close to normal. Deterministic: the same values every time.
    """
    values = np.random.default_rng(0).standard_normal((N_VALUES // 128, 1, 128)).astype(np.float32)
    format_ = get_format(type_name)
    error = np.asarray(format_.dequantize(format_.quantize(values), values.shape[-1])) - values
    return float(np.mean(error.astype(np.float64) ** 2) / np.mean(values.astype(np.float64) ** 2))


def coarsest(types: Sequence[str]) -> str:
    """Return the type with the largest error: the one whose cost shows best above the floor."""
    return max(types, key=format_noise)


def finest(types: Sequence[str]) -> str:
    """Return the quantized type with the smallest error."""
    return min((name for name in types if name != EXACT), key=format_noise)


def is_clear(found: Kl, floor: float) -> bool:
    """Whether a measurement is above the floor beyond its interval: finer types are worth measuring there."""
    return found.interval is not None and found.interval.low > floor


def can_show(found: Kl, floor: Floor, layer: int, type_name: str, reference: str) -> bool:
    """Whether a finer type than ``reference``, the one measured, can be expected to show above the noise.

    A smaller KL has less noise, down to the floor's own.
    """
    ratio = format_noise(type_name) / format_noise(reference)
    noise = min(_standard_error(found), Z * _standard_error(floor.whole))
    return is_clear(found, floor.at(layer)) and (found.mean - floor.at(layer)) * ratio > noise


def side_costs(
    measured: Mapping[tuple[Side, str], Kl], floor: Floor, sides: Sequence[Side], types: Sequence[str]
) -> dict[tuple[Side, str], Cost]:
    """Return the cost of every type on every side.

    measured: holds at least the coarsest type of every side. A finer type that was not measured gets the cost
    of the coarsest times the ratio of the formats' squared errors: KL grows with the square of an error.
    """
    reference = coarsest(types)
    costs: dict[tuple[Side, str], Cost] = {}
    for kind in dict.fromkeys(place.side for place in sides):
        alike = [place for place in sides if place.side == kind]
        above = [measured[place, reference].mean - floor.at(place.layer) for place in alike]
        errors = [_standard_error(measured[place, reference]) for place in alike]
        for place, cost in zip(alike, _shrunk(above, errors), strict=True):
            costs[place, reference] = cost
    for place in sides:
        base = costs[place, reference]
        for name in types:
            if name in (reference, EXACT):
                continue
            ratio = format_noise(name) / format_noise(reference)
            scaled = Cost(base.nats * ratio, base.error * ratio, measured=False)
            found = measured.get((place, name))
            costs[place, name] = (
                scaled if found is None else _between(found, floor.at(place.layer), scaled, base)
            )
        costs[place, EXACT] = Cost(0.0, 0.0, measured=False)
    return costs


def gained_costs(
    gains: Mapping[Side, tuple[float, Interval | None]], sides: Sequence[Side], types: Sequence[str]
) -> dict[tuple[Side, str], Cost]:
    """Return costs from what each side in f16 gains where all others are in the coarsest type.

    gains: nats, with their intervals. Finer types get the gain scaled by the formats' squared errors.
    """
    reference = coarsest(types)
    costs: dict[tuple[Side, str], Cost] = {}
    for kind in dict.fromkeys(place.side for place in sides):
        alike = [place for place in sides if place.side == kind]
        errors = [_half(gains[place][1]) / Z for place in alike]
        for place, base in zip(alike, _shrunk([gains[p][0] for p in alike], errors), strict=True):
            for name in types:
                ratio = 0.0 if name == EXACT else format_noise(name) / format_noise(reference)
                costs[place, name] = Cost(base.nats * ratio, base.error * ratio, measured=name == reference)
    return costs


def _shrunk(above: Sequence[float], errors: Sequence[float]) -> list[Cost]:
    """Measurements above the floor, drawn towards their median as far as noise explains their distance."""
    noise = median(error**2 for error in errors)
    # A median below the floor is noise too; what its own error allows is the least that can be said.
    center = max(median(above), math.sqrt(noise / len(above)))
    typical = NORMAL_MAD * median(abs(value - center) for value in above)
    spread = max(0.0, typical**2 - noise)
    costs = []
    for value, error in zip(above, errors, strict=True):
        distance = value - center
        weight = spread / (spread + error**2) if spread else 0.0
        if distance**2 > APART * error**2:
            weight = max(weight, 1 - APART * error**2 / distance**2)
        nats = max(center + weight * distance, LEAST_SHARE * center)
        costs.append(Cost(nats, math.sqrt(weight) * error, measured=True))
    return costs


def _between(found: Kl, floor: float, scaled: Cost, coarsest_cost: Cost) -> Cost:
    """A finer type's own measurement where it shows, kept between what it can be at least and at most."""
    error = _standard_error(found)
    above = found.mean - floor
    nats = min(above if is_clear(found, floor) else scaled.nats, above + Z * error, coarsest_cost.nats)
    return Cost(max(nats, LEAST_SHARE * scaled.nats), error, measured=True)


def _standard_error(kl: Kl) -> float:
    return _half(kl.interval) / Z


def _half(interval: Interval | None) -> float:
    return 0.0 if interval is None else (interval.high - interval.low) / 2
