"""The figures of a validation, as SVG that follows a page's colours; None where nothing of the kind is known.

``narrow`` figures are for phones. ``prefix`` keeps the ids of several figures on a page apart. A policy
has the same ink in all of them: the baseline is played down, the others have colours of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvquant.errors import KVQuantError
from kvquant.files import write_atomic
from kvquant.report.drawing import (
    PLACEHOLDERS,
    SERIES,
    FigureSize,
    cut,
    decade_axis,
    open_figure,
    place_labels,
    ratio_axis,
    standalone_svg,
    step_front,
    style_axes,
    themed_svg,
)
from kvquant.results.comparison import TaskRow
from kvquant.results.validation import Divergence, PolicyResult, ValidationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Callable[["Axes", ValidationResult], None]
"""Draws one part of a figure."""

KL_FLOOR = 1e-9
"""Nats at which "no divergence at all" is drawn on a logarithmic axis."""

WIDE, NARROW = 10.0, 4.4
"""Inches of figures for a screen and for a phone."""

LONGEST_LABEL = {WIDE: 64, NARROW: 34}
"""Characters of a policy's name that a figure of a width has room for."""

_MARKERS = ("o", "s", "D")
_DASHES = ("solid", "dashed", "dotted")


@dataclass(frozen=True)
class Ink:
    """How a policy is drawn. role: its colour in a `Palette`. dash: also a name of a CSS border style."""

    role: str
    marker: str
    dash: str

    @property
    def color(self) -> str:
        """The colour to draw with."""
        return str(getattr(PLACEHOLDERS, self.role))


def inks(result: ValidationResult) -> dict[str, Ink]:
    """Return every policy's ink by its label: colours first, other marks and dashes when they run out."""
    found = {}
    for index, policy in enumerate(result.compared):
        style = index // len(SERIES) % len(_MARKERS)
        found[policy.label] = Ink(SERIES[index % len(SERIES)], _MARKERS[style], _DASHES[style])
    return {result.baseline: Ink("rival", "o", "solid"), **found}


def stacked(
    result: ValidationResult,
    panels: Sequence[Panel],
    narrow: bool,
    height: float,
    prefix: str,
) -> str | None:
    """Return a figure of panels beside each other, below each other on a phone; None without any."""
    if not panels:
        return None
    n_rows, n_columns = (len(panels), 1) if narrow else (1, len(panels))
    size = FigureSize(NARROW if narrow else WIDE, height * n_rows)
    with open_figure(size, PLACEHOLDERS) as figure:
        grid = figure.subplots(n_rows, n_columns, squeeze=False)
        for axes, draw in zip(grid.flat, panels, strict=True):
            draw(axes, result)
        return themed_svg(figure, prefix)


def draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], ink: Ink) -> None:
    """Draw a policy's course."""
    axes.plot(x, y, color=ink.color, marker=ink.marker, markersize=5, linestyle=ink.dash, linewidth=1.8)


def draw_estimate(
    axes: Axes,
    y: float,
    value: float,
    interval: Sequence[float] | None,
    ink: Ink,
    hollow: bool = False,
) -> None:
    """Draw a mark with its interval as a line."""
    if interval is not None:
        axes.plot(interval, [y, y], color=ink.color, linewidth=2, zorder=2)
    face = PLACEHOLDERS.background if hollow else ink.color
    axes.plot([value], [y], ink.marker, color=ink.color, markerfacecolor=face, markersize=5.5, zorder=3)


def name_rows(
    axes: Axes,
    names: Sequence[str],
    size: FigureSize,
    at: Sequence[float] | None = None,
    bottom: float | None = None,
    offset: float = 0.3,
) -> None:
    """Make rows from above to below, each name at the left above its row, where it takes no width.

    at: where the named rows are, else 0, 1, ... bottom: the lower end of the axis.
    """
    at = range(len(names)) if at is None else at
    style_axes(axes, PLACEHOLDERS, "")
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=PLACEHOLDERS.grid, linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.5 if bottom is None else bottom, -0.75)
    place: Any = axes.get_yaxis_transform()
    for y, name in zip(at, names, strict=True):
        text = cut(name, LONGEST_LABEL[size.width])
        axes.text(0, y - offset, text, transform=place, color=PLACEHOLDERS.text, va="center", clip_on=False)


def visible(kl: float) -> float:
    """Return a divergence that a logarithmic axis can show."""
    return max(kl, KL_FLOOR)


def quality_svg(result: ValidationResult, narrow: bool, prefix: str) -> str | None:
    """Draw memory against quality: KL divergence, and right answers."""
    panels: list[Panel] = []
    if _kl_points(result):
        panels.append(_draw_kl_against_memory)
    if any(total is not None and ratio is not None for _, ratio, total in _answers(result)):
        panels.append(_draw_answers_against_memory)
    return stacked(result, panels, narrow, 4.2, prefix)


def write_quality_figure(result: ValidationResult, path: str) -> None:
    """Write the figure as a file of its own. Raises KVQuantError when nothing is known to draw."""
    svg = quality_svg(result, narrow=False, prefix="quality")
    if svg is None:
        raise KVQuantError("no policy has a size and a quality yet: there is nothing to draw")
    write_atomic(path, standalone_svg(svg))


def _kl_points(result: ValidationResult) -> dict[str, tuple[float, Divergence]]:
    """Size and divergence of every policy that has both, by label."""
    found = {}
    for policy in result.compared:
        ratio, row = policy.ratio, policy.worst_divergence
        if ratio is not None and row is not None and row.mean is not None:
            found[policy.label] = (ratio, row)
    return found


def _draw_kl_against_memory(axes: Axes, result: ValidationResult) -> None:
    of_policy = inks(result)
    drawn = _kl_points(result)
    places = {label: (ratio, visible(row.mean or 0.0)) for label, (ratio, row) in drawn.items()}
    front = step_front(list(places.values()))
    axes.plot(
        *zip(*front, strict=True), color=PLACEHOLDERS.rival, alpha=0.45, drawstyle="steps-post", zorder=1
    )
    for label, (x, y) in places.items():
        interval = drawn[label][1].interval
        if interval is not None:
            ends = [visible(end) for end in interval]
            axes.plot([x, x], ends, color=of_policy[label].color, linewidth=1.6, zorder=2)
        axes.plot([x], [y], of_policy[label].marker, color=of_policy[label].color, markersize=7, zorder=3)
    floors = [row.floor.mean for _, row in drawn.values() if row.floor and row.floor.mean]
    if floors:
        axes.axhline(max(floors), color=PLACEHOLDERS.rival, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yscale("log")
    decade_axis(axes.yaxis)
    _finish_memory_axis(axes, "KL divergence, nats", result, places)


def _answers(result: ValidationResult) -> list[tuple[str, float | None, TaskRow | None]]:
    return [(policy.label, policy.ratio, policy.total) for policy in result.policies]


def _draw_answers_against_memory(axes: Axes, result: ValidationResult) -> None:
    of_policy = inks(result)
    places: dict[str, tuple[float, float]] = {}
    for label, ratio, total in _answers(result):
        if ratio is None or total is None or total.other.rate is None:
            continue
        ink = of_policy[label]
        places[label] = (ratio, 100 * total.other.rate)
        if total.other.interval is not None:
            ends = [100 * end for end in total.other.interval]
            axes.plot([ratio, ratio], ends, color=ink.color, linewidth=1.6, zorder=2)
        axes.plot(*places[label], ink.marker, color=ink.color, markersize=7, zorder=3)
    _finish_memory_axis(axes, "right answers, %", result, places)


def _finish_memory_axis(
    axes: Axes,
    title: str,
    result: ValidationResult,
    places: Mapping[str, tuple[float, float]],
) -> None:
    """The same sizes in every panel, from the smallest cache to the largest."""
    of_policy = inks(result)
    ratios = [ratio for policy in result.policies if (ratio := policy.ratio) is not None]
    sizes = min(ratios), max(ratios)
    axes.set_xscale("log")
    axes.margins(y=0.14)
    axes.set_xlim(sizes[0] * 0.88, sizes[1] * 1.25)
    style_axes(axes, PLACEHOLDERS, title)
    axes.set_xlabel("KV cache, as a share of the baseline's", color=PLACEHOLDERS.text)
    ratio_axis(axes)
    longest = LONGEST_LABEL[NARROW]
    place_labels(
        axes, [(cut(label, longest), place, of_policy[label].color) for label, place in places.items()]
    )


def divergence_svg(result: ValidationResult, narrow: bool, prefix: str) -> str | None:
    """Draw the mean KL divergence of each policy with its interval and the floor."""
    rows = [policy for policy in result.compared if policy.divergence]
    if not rows:
        return None
    size = FigureSize(NARROW if narrow else WIDE, 1.1 + 0.52 * len(rows))
    with open_figure(size, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        of_policy = inks(result)
        for y, policy in enumerate(rows):
            ink = of_policy[policy.label]
            for row in policy.divergence:
                hollow = row.path == "prefill"
                if row.mean is not None:
                    at = y - 0.09 if hollow else y + 0.09
                    interval = row.interval and [visible(end) for end in row.interval]
                    draw_estimate(axes, at, visible(row.mean), interval, ink, hollow)
                if row.floor is not None and row.floor.mean is not None:
                    floor = visible(row.floor.mean)
                    axes.plot([floor], [y], "|", color=PLACEHOLDERS.rival, markersize=13)
        axes.set_xscale("log")
        decade_axis(axes.xaxis)
        name_rows(axes, [policy.label for policy in rows], size)
        axes.set_xlabel("mean KL divergence per token, nats", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def positions_svg(result: ValidationResult, narrow: bool, prefix: str) -> str | None:
    """Draw KL divergence by the token's position."""
    rows = [(policy, row) for policy in result.compared if (row := policy.worst_divergence) is not None]
    drawn = [(policy.label, row.by_position) for policy, row in rows if row.by_position]
    if not drawn:
        return None
    with open_figure(FigureSize(NARROW if narrow else WIDE, 3.6), PLACEHOLDERS) as figure:
        axes = figure.subplots()
        of_policy = inks(result)
        for label, bins in drawn:
            middles = [(part.first + part.last) / 2 for part in bins]
            draw_line(axes, middles, [visible(part.mean) for part in bins], of_policy[label])
        axes.set_yscale("log")
        decade_axis(axes.yaxis)
        style_axes(axes, PLACEHOLDERS, "KL divergence, nats")
        axes.set_xlabel("position of the token", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def categories_svg(result: ValidationResult, narrow: bool, prefix: str) -> str | None:
    """Draw what changed in every category: a row for each policy, points with their intervals."""
    rows = [
        (row.category, policy.label, row)
        for policy in result.compared
        for row in policy.tasks
        if row.change.value is not None
    ]
    if not rows:
        return None
    categories = list(dict.fromkeys(category for category, _, _ in rows))
    of_policy = inks(result)
    order = list(dict.fromkeys(label for _, label, _ in rows))
    per_category = 1 + len(order)
    size = FigureSize(NARROW if narrow else WIDE, 1.0 + 0.17 * per_category * len(categories))
    with open_figure(size, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=PLACEHOLDERS.rival, linewidth=1.2, zorder=1)
        for category, label, row in rows:
            y = categories.index(category) * per_category + 1 + order.index(label)
            change = row.change
            interval = change.interval and [100 * end for end in change.interval]
            draw_estimate(axes, y, 100 * (change.value or 0.0), interval, of_policy[label])
        tops = [index * per_category for index in range(len(categories))]
        name_rows(axes, categories, size, tops, per_category * len(categories) - 0.5, offset=0.0)
        axes.set_xlabel("change of right answers against the baseline, points", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def speed_svg(result: ValidationResult, narrow: bool, prefix: str) -> str | None:
    """Draw tokens per second against the depth of the cache, for prefill and for decode."""
    phases = {row.phase for policy in result.policies for row in policy.speed}
    panels = [_speed_panel(phase) for phase in ("prefill", "decode") if phase in phases]
    return stacked(result, panels, narrow, 3.4, prefix)


def layers_svg(result: ValidationResult, narrow: bool, prefix: str) -> str | None:
    """Draw the bytes of every layer's K and V, as shades of a share of the baseline's."""
    full = {policy.label: _layer_bytes(policy) for policy in result.policies}
    reference = full.get(result.baseline) or {}
    rows = [(label, layers) for label, layers in full.items() if layers and label != result.baseline]
    if not reference or not rows:
        return None
    size = FigureSize(NARROW if narrow else WIDE, 1.0 + 0.62 * len(rows))
    with open_figure(size, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        for y, (_, layers) in enumerate(rows):
            for side, (top, color) in enumerate(((0.0, PLACEHOLDERS.k), (0.22, PLACEHOLDERS.v))):
                for layer, sizes in layers.items():
                    whole = reference.get(layer, (0, 0))[side]
                    share = min(1.0, sizes[side] / whole) if whole else 0.0
                    axes.barh(y + top, 0.86, 0.2, layer - 0.43, align="edge", color=color, alpha=share)
        name_rows(axes, [label for label, _ in rows], size)
        axes.set_xlim(min(reference) - 0.6, max(reference) + 0.6)
        axes.grid(False)
        axes.set_xlabel("layer", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def _speed_panel(phase: str) -> Panel:
    def draw(axes: Axes, result: ValidationResult) -> None:
        depths = sorted(
            {row.depth for policy in result.policies for row in policy.speed if row.phase == phase}
        )
        of_policy = inks(result)
        for policy in result.policies:
            rows = sorted(
                (row.depth, row.tokens_per_second)
                for row in policy.speed
                if row.phase == phase and row.tokens_per_second is not None
            )
            xs = [depths.index(depth) for depth, _ in rows]
            draw_line(axes, xs, [speed for _, speed in rows], of_policy[policy.label])
        style_axes(axes, PLACEHOLDERS, f"{phase}, tokens/s")
        axes.set_xticks(range(len(depths)), [f"{depth:,}" for depth in depths])
        axes.margins(x=0.08)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens in the cache", color=PLACEHOLDERS.text)

    return draw


def _layer_bytes(policy: PolicyResult) -> dict[int, tuple[int, int]]:
    memory = policy.memory
    return {layer.layer: (layer.k_bytes, layer.v_bytes) for layer in memory.layers} if memory else {}
