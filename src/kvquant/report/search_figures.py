"""The figures of a search: KL against bytes, what each side costs, predictions against measurements."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kvquant.report.drawing import (
    PLACEHOLDERS,
    FigureSize,
    Palette,
    add_legend,
    decade_axis,
    open_figure,
    place_labels,
    ratio_axis,
    step_front,
    style_axes,
    themed_svg,
)
from kvquant.report.search import CHOSEN
from kvquant.results.search import MeasuredPolicy, SearchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = FigureSize(9.4, 5.2)
NARROW = FigureSize(4.8, 5.4)

LEAST_SHADE = 0.06
"""Opacity of the cell that costs least: none is drawn as if it were missing."""

LONGEST_LABEL = 24


def front_svg(result: SearchResult, narrow: bool, prefix: str) -> str:
    """Return KL on the held-out text against the share of f16: the front, the policy and every rival."""
    with open_figure(NARROW if narrow else WIDE, PLACEHOLDERS) as figure:
        draw_front(figure.subplots(), result, PLACEHOLDERS, labels=not narrow)
        return themed_svg(figure, prefix)


def draw_front(axes: Axes, result: SearchResult, palette: Palette, *, labels: bool) -> None:
    """Draw the points and, behind them, the front of what was measured."""
    front = [_point(entry) for entry in result.front if entry.kl_held_out is not None]
    rivals = [entry for entry in result.rivals if entry.kl_held_out is not None]
    chosen = (result.of_f16, _shown(None if result.kl_held_out is None else result.kl_held_out.mean))
    line: Any = {"color": palette.policy, "linewidth": 1.6, "alpha": 0.55, "zorder": 1}
    axes.plot(*zip(*step_front([*front, chosen]), strict=True), drawstyle="steps-post", label="front", **line)
    if front:
        axes.plot(*zip(*front, strict=True), "o", color=palette.policy, markersize=4.5, zorder=2)
    if rivals:
        points = [_point(entry) for entry in rivals]
        axes.plot(*zip(*points, strict=True), "o", color=palette.rival, markersize=6, label="rule", zorder=2)
    if result.random is not None:
        mean, best = _shown(result.random.mean), _shown(result.random.best)
        axes.plot(
            [chosen[0]] * 2, [best, mean], "_-", color=palette.caution, markersize=9, label="random", zorder=1
        )
    axes.axhline(_shown(result.floor.mean), color=palette.rival, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    axes.plot(*chosen, "D", color=palette.policy, markersize=9, zorder=3)
    axes.set_yscale("log")
    axes.margins(0.12, 0.12)
    style_axes(axes, palette, "")
    add_legend(axes, palette)
    axes.set_xlabel("size, as a share of f16", color=palette.text)
    axes.set_ylabel("KL divergence, nats a token", color=palette.text)
    decade_axis(axes.yaxis)
    ratio_axis(axes)
    named = [(result.simple or CHOSEN, chosen, palette.policy)]
    if labels:
        named += [(entry.name[:LONGEST_LABEL], _point(entry), palette.text) for entry in rivals]
    place_labels(axes, named)


def heat_svg(result: SearchResult, narrow: bool, prefix: str) -> str:
    """Return what each type costs on each side of each layer, darker for more."""
    rows = _rows(result)
    height = 1.3 + 0.3 * len(rows)
    with open_figure(FigureSize(4.8 if narrow else 9.4, height), PLACEHOLDERS) as figure:
        draw_heat(figure.subplots(), result, PLACEHOLDERS)
        return themed_svg(figure, prefix)


def draw_heat(axes: Axes, result: SearchResult, palette: Palette) -> None:
    """Draw a cell for each type, side and layer."""
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FixedLocator, MaxNLocator

    rows = _rows(result)
    cells = {(entry.side, entry.type, entry.layer): entry.cost for entry in result.sides}
    layers = sorted({entry.layer for entry in result.sides})
    positive = [cost for cost in cells.values() if 0 < cost < math.inf]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    for row, (side, name) in enumerate(rows):
        for column, layer in enumerate(layers):
            cost = cells.get((side, name, layer))
            if cost is None:
                continue
            shade = _shade(cost, low, high)
            axes.add_patch(
                Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=palette.policy, alpha=shade)
            )
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    style_axes(axes, palette, "")
    axes.grid(False)
    axes.set_yticks(range(len(rows)), [f"{side.upper()} {name}" for side, name in rows])
    axes.set_xlabel("layer", color=palette.text)
    ticks = [int(tick) for tick in MaxNLocator(integer=True).tick_values(0, len(layers) - 1)]
    ticks = [tick for tick in ticks if 0 <= tick < len(layers)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticklabels([str(layers[tick]) for tick in ticks])


def additivity_svg(result: SearchResult, narrow: bool, prefix: str) -> str | None:
    """Return measured KL of whole policies against the sums of their costs, None without a pair."""
    pairs = additive_pairs(result)
    if not pairs:
        return None
    with open_figure(NARROW if narrow else WIDE, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        palette = PLACEHOLDERS
        values = [value for pair in pairs for value in pair]
        ends = (min(values) / 1.3, max(values) * 1.3)
        axes.plot(ends, ends, color=palette.rival, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.plot(*zip(*pairs, strict=True), "o", color=palette.policy, markersize=5, alpha=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        style_axes(axes, palette, "")
        axes.set_xlabel("predicted, nats a token", color=palette.text)
        axes.set_ylabel("measured, nats a token", color=palette.text)
        decade_axis(axes.xaxis)
        decade_axis(axes.yaxis)
        return themed_svg(figure, prefix)


def additive_pairs(result: SearchResult) -> list[tuple[float, float]]:
    """Return (predicted, measured on the fitting text) of every policy that has both."""
    return [
        (entry.predicted, entry.kl_fit.mean)
        for entry in (*result.candidates, *result.rivals)
        if entry.predicted and entry.kl_fit is not None and entry.kl_fit.mean > 0
    ]


def _rows(result: SearchResult) -> list[tuple[str, str]]:
    sides = dict.fromkeys(entry.side for entry in result.sides)
    return [
        (side, name)
        for side in sides
        for name in dict.fromkeys(entry.type for entry in result.sides if entry.side == side)
    ]


def _shade(cost: float, low: float, high: float) -> float:
    """Opacity on a logarithmic scale from the least cost to the largest."""
    if cost <= low or high <= low:
        return LEAST_SHADE
    return LEAST_SHADE + (1 - LEAST_SHADE) * min(1.0, math.log(cost / low) / math.log(high / low))


def _point(entry: MeasuredPolicy) -> tuple[float, float]:
    return entry.of_f16, _shown(None if entry.kl_held_out is None else entry.kl_held_out.mean)


def _shown(value: float | None) -> float:
    """A KL for a logarithmic axis."""
    return max(value or 0.0, 1e-6)
