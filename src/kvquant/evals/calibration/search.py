"""The choice of kinds by measured divergence: one kind in all layers first, then changes of halves, quarters
and so on of the layers. A kind that costs more to compute with is taken only where it is surely better.

Measurements are asked for in groups, as one run of llama-kv-divergence serves many caches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kvquant.evals.calibration.recipes import RECIPES, Assignment, Recipe, uniform
from kvquant.evals.divergence import TokenDivergence
from kvquant.evals.divergence_summary import LEAST_BLOCKS, block_starts
from kvquant.evals.statistics import bootstrap_blocks
from kvquant.results.calibration import Trial
from kvquant.results.comparison import Interval

N_RIVALS = 2
"""Kinds that a part of the layers is tried with: the next best ones in all layers."""

MIN_LAYERS = 2
"""A part of fewer layers is not tried: its effect drowns in noise."""


@dataclass(frozen=True)
class Measured:
    """KL of the same tokens in the same order under every assignment: sums and counts of blocks of them."""

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Over all tokens."""
        return float(self.sums.sum() / self.counts.sum())

    def change_from(self, other: Measured) -> Interval | None:
        """Return the 95 % interval of this mean minus the other's, None where it cannot be known."""
        if len(self.counts) < LEAST_BLOCKS:
            return None
        return bootstrap_blocks((self.sums - other.sums).tolist(), self.counts.tolist())

    def surely_better(self, other: Measured) -> bool:
        """Whether the whole interval of the difference lies below 0."""
        change = self.change_from(other)
        return change is not None and change.high < 0


def measured_of(tokens: Sequence[TokenDivergence]) -> Measured:
    """Sum up scored tokens by the blocks that intervals draw from."""
    starts = block_starts(tokens)
    kl = np.array([token.kl for token in tokens])
    return Measured(np.add.reduceat(kl, starts), np.diff([*starts, len(kl)]).astype(np.float64))


Part = tuple[int, ...]
"""Layers, ascending."""

Measure = Callable[[Sequence[Assignment]], Sequence[Measured]]


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what was tried on the way."""

    assignment: Assignment
    trials: tuple[Trial, ...]


def choose(layers: Sequence[int], recipes: Sequence[Recipe], n_rounds: int, measure: Measure) -> Choice:
    """Choose what each layer is given.

    layers: those whose keys are quantized. recipes: with "none" among them. n_rounds: how often the layers
    are halved, 0 for the same kind in all.
    """
    everywhere = dict(zip(recipes, measure([uniform(layers, recipe) for recipe in recipes]), strict=True))
    best = cheapest(everywhere)
    trials = [Trial(recipe, found.mean, recipe == best) for recipe, found in everywhere.items()]
    rivals = sorted((r for r in recipes if r != best), key=lambda recipe: everywhere[recipe].mean)[:N_RIVALS]
    current, measured = uniform(layers, best), everywhere[best]
    for index in range(n_rounds):
        changes = [
            (part, recipe)
            for part in _parts(layers, 2 ** (index + 1))
            for recipe in (best, *rivals)
            if _changed(current, part, recipe) != current
        ]
        if not changes:
            break
        found = measure([_changed(current, part, recipe) for part, recipe in changes])
        taken = _takeable(changes, found, measured)
        together = current
        for part, recipe in taken:
            together = _changed(together, part, recipe)
        if taken:
            # One change alone is known; several may not add up.
            joint = found[changes.index(taken[0])] if len(taken) == 1 else measure([together])[0]
            # And "surely better" is not transitive: a kind in all layers that was left for a cheaper one may
            # be surely better than what the cheaper one became.
            if joint.surely_better(measured) and not _beaten(joint, everywhere):
                current, measured = together, joint
            else:
                taken = []
        trials += [
            Trial(f"{recipe} in {_named(part)}", one.mean, (part, recipe) in taken)
            for (part, recipe), one in zip(changes, found, strict=True)
        ]
    return Choice(current, tuple(trials))


def cheapest(found: Mapping[Recipe, Measured]) -> Recipe:
    """Return the recipe that costs least to compute with among those that no other is surely better than.

    Every other, not only the best one: a difference to the best may be less sure than one to the second best.
    """
    best = min(found, key=lambda recipe: found[recipe].mean)
    order = [recipe for recipe in RECIPES if recipe in found]
    return next(r for r in order if r == best or not _beaten(found[r], found))


def _beaten(one: Measured, others: Mapping[Recipe, Measured]) -> bool:
    """Whether any of the others is surely better than this one."""
    return any(other.surely_better(one) for other in others.values())


def _takeable(
    changes: Sequence[tuple[Part, Recipe]], found: Sequence[Measured], before: Measured
) -> list[tuple[Part, Recipe]]:
    """The best change of each part, where it is surely better than none."""
    best: dict[Part, tuple[float, Recipe]] = {}
    for (part, recipe), measured in zip(changes, found, strict=True):
        if measured.surely_better(before) and (part not in best or measured.mean < best[part][0]):
            best[part] = (measured.mean, recipe)
    return [(part, recipe) for part, (_, recipe) in best.items()]


def _parts(layers: Sequence[int], n_parts: int) -> list[Part]:
    """Cut the layers into parts of neighbours; none when they would be too small."""
    if len(layers) < n_parts * MIN_LAYERS:
        return []
    cuts = [len(layers) * index // n_parts for index in range(n_parts + 1)]
    return [tuple(layers[low:high]) for low, high in pairwise(cuts)]


def _changed(assignment: Assignment, part: Part, recipe: Recipe) -> Assignment:
    return tuple((layer, recipe if layer in part else old) for layer, old in assignment)


def _named(part: Part) -> str:
    return f"layers {part[0]}-{part[-1]}"
