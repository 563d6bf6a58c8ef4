"""One option per layer, least total error within a number of bytes: the multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvquant.errors import UsageError
from kvquant.units import format_n_bytes

MAX_FRONT = 1 << 16
"""States kept after each layer. Equal layers need a few thousand; a front of more is thinned."""


@dataclass(frozen=True)
class Choice:
    """The option taken for every layer, and the sums. exact: no choice within the budget has less error."""

    options: tuple[int, ...]
    n_bytes: int
    error: float
    exact: bool


@dataclass(frozen=True, eq=False)
class _Front:
    """Every sum of bytes worth having so far, ascending, with falling error: all arrays (n_states,).

    previous, option: the state of the front before and the option that lead here.
    """

    n_bytes: npt.NDArray[np.int64]
    error: npt.NDArray[np.float64]
    previous: npt.NDArray[np.int64]
    option: npt.NDArray[np.int64]


def choose(layers: Sequence[Sequence[tuple[int, float]]], budget: int) -> Choice:
    """Return the options, one (bytes, error) pair per layer, with the least sum of errors within ``budget``.

    Layer by layer only the states that no other beats in bytes and error are kept, which loses no best
    choice. Raises UsageError when even the smallest options do not fit.
    """
    smallest = [min(n_bytes for n_bytes, _ in options) for options in layers]
    if sum(smallest) > budget:
        raise UsageError(
            f"a budget of {format_n_bytes(budget)} is below {format_n_bytes(sum(smallest))}, the smallest "
            "size with these types; raise it, shorten the context, or allow smaller types"
        )
    fronts, exact = _fronts(layers, smallest, budget)
    return _traced(fronts, len(fronts[-1].error) - 1, exact)


def choose_within_error(layers: Sequence[Sequence[tuple[int, float]]], most_error: float) -> Choice:
    """Return the options with the fewest bytes whose errors sum up to at most ``most_error``.

    Raises UsageError when even the most accurate options exceed it.
    """
    smallest = [min(n_bytes for n_bytes, _ in options) for options in layers]
    largest = sum(max(n_bytes for n_bytes, _ in options) for options in layers)
    fronts, exact = _fronts(layers, smallest, largest)
    fitting = np.flatnonzero(fronts[-1].error <= most_error)
    if not len(fitting):
        raise UsageError(
            f"an error of {most_error:.3g} is below {fronts[-1].error[-1]:.3g}, the smallest error "
            "with these types; raise it, or allow larger types"
        )
    return _traced(fronts, int(fitting[0]), exact)


def _fronts(
    layers: Sequence[Sequence[tuple[int, float]]], smallest: Sequence[int], budget: int
) -> tuple[list[_Front], bool]:
    """The front after each layer, the empty one first, and whether nothing was thinned."""
    fronts = [_Front(np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64))]
    exact = True
    to_come = sum(smallest)
    for options, least in zip(layers, smallest, strict=True):
        to_come -= least
        front = _extended(fronts[-1], options, budget - to_come)
        if len(front.error) > MAX_FRONT:
            exact = False
            front = _thinned(front)
        fronts.append(front)
    return fronts, exact


def _extended(front: _Front, options: Sequence[tuple[int, float]], limit: int) -> _Front:
    """The front after one more layer, without states above ``limit`` bytes."""
    option_bytes = np.array([n_bytes for n_bytes, _ in options], np.int64)
    option_error = np.array([error for _, error in options])
    n_bytes = (front.n_bytes[:, None] + option_bytes).ravel()
    error = (front.error[:, None] + option_error).ravel()
    order = np.lexsort((error, n_bytes))
    order = order[n_bytes[order] <= limit]
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], error[order][:-1])))
    kept = order[error[order] < best_before]
    return _Front(n_bytes[kept], error[kept], kept // len(options), kept % len(options))


def _thinned(front: _Front) -> _Front:
    """At most MAX_FRONT states, evenly spread over the front, its two ends among them."""
    kept = np.linspace(0, len(front.error) - 1, MAX_FRONT).astype(np.int64)
    return _Front(front.n_bytes[kept], front.error[kept], front.previous[kept], front.option[kept])


def _traced(fronts: Sequence[_Front], state: int, exact: bool) -> Choice:
    """Follow a state of the final front back to the first layer."""
    last = fronts[-1]
    options = []
    at = state
    for front in reversed(fronts[1:]):
        options.append(int(front.option[at]))
        at = int(front.previous[at])
    return Choice(tuple(reversed(options)), int(last.n_bytes[state]), float(last.error[state]), exact)
