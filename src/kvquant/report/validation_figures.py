"""The figures of a validation, as SVG that follows a page's colours; None where nothing of the kind is known.

Each policy keeps its ink through all figures: the baseline is played down, the others have colours of their
own. ``narrow`` figures are for phones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvquant.report.drawing import (
    PLACEHOLDERS,
    SERIES,
    FigureSize,
    decade_axis,
    open_figure,
    place_labels,
    ratio_axis,
    step_front,
    style_axes,
    themed_svg,
)
from kvquant.report.validation_document import Document, compared, divergence_of, ratio_of, total_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KL_FLOOR = 1e-9
"""Nats at which "no divergence at all" is drawn on a logarithmic axis."""

_WIDE = 10.0
_NARROW = 4.4
_LONGEST_LABEL = {_WIDE: 64, _NARROW: 34}
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


def inks(document: Document) -> dict[str, Ink]:
    """Return every policy's ink by its label: colours first, other marks and dashes when they run out."""
    found = {}
    for index, policy in enumerate(compared(document)):
        style = index // len(SERIES) % len(_MARKERS)
        found[policy["label"]] = Ink(SERIES[index % len(SERIES)], _MARKERS[style], _DASHES[style])
    return {document["baseline"]: Ink("rival", "o", "solid"), **found}


def quality_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw memory against quality: KL divergence, and right answers."""
    panels: list[Callable[[Axes, Document], None]] = []
    if _kl_points(document):
        panels.append(_draw_kl_against_memory)
    if any(total is not None and ratio is not None for _, ratio, total in _answers(document)):
        panels.append(_draw_answers_against_memory)
    return _stacked(document, panels, narrow, 4.2, prefix)


def divergence_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw the mean KL divergence of each policy with its interval and the floor."""
    rows = [policy for policy in compared(document) if policy["divergence"]]
    if not rows:
        return None
    size = FigureSize(_NARROW if narrow else _WIDE, 1.1 + 0.52 * len(rows))
    with open_figure(size, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        of_policy = inks(document)
        for y, policy in enumerate(rows):
            ink = of_policy[policy["label"]]
            for row in policy["divergence"]:
                mean, interval = (
                    _visible(row["mean"]),
                    row["interval"] and [_visible(end) for end in row["interval"]],
                )
                hollow = row["path"] == "prefill"
                _draw_estimate(axes, y + (-0.09 if hollow else 0.09), mean, interval, ink, hollow)
                if row["floor"] is not None and row["floor"]["mean"] is not None:
                    floor = _visible(row["floor"]["mean"])
                    axes.plot([floor], [y], "|", color=PLACEHOLDERS.rival, markersize=13)
        axes.set_xscale("log")
        decade_axis(axes.xaxis)
        _name_rows(axes, [policy["label"] for policy in rows], size)
        axes.set_xlabel("mean KL divergence per token, nats", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def positions_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw KL divergence by the token's position."""
    rows = [(policy, row) for policy in compared(document) if (row := divergence_of(policy)) is not None]
    drawn = [(policy["label"], row["by_position"]) for policy, row in rows if row["by_position"]]
    if not drawn:
        return None
    with open_figure(FigureSize(_NARROW if narrow else _WIDE, 3.6), PLACEHOLDERS) as figure:
        axes = figure.subplots()
        of_policy = inks(document)
        for label, bins in drawn:
            middles = [(part["first"] + part["last"]) / 2 for part in bins]
            _draw_line(axes, middles, [max(part["mean"], KL_FLOOR) for part in bins], of_policy[label])
        axes.set_yscale("log")
        decade_axis(axes.yaxis)
        style_axes(axes, PLACEHOLDERS, "KL divergence, nats")
        axes.set_xlabel("position of the token", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def categories_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw what changed in every category: a row for each policy, points with their intervals."""
    rows = [
        (row["category"], policy["label"], row)
        for policy in compared(document)
        for row in policy["tasks"]
        if row["change"]["value"] is not None
    ]
    if not rows:
        return None
    categories = list(dict.fromkeys(category for category, _, _ in rows))
    of_policy = inks(document)
    per_category = 1 + len({label for _, label, _ in rows})
    size = FigureSize(_NARROW if narrow else _WIDE, 1.0 + 0.17 * per_category * len(categories))
    with open_figure(size, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=PLACEHOLDERS.rival, linewidth=1.2, zorder=1)
        order = list(of_policy)
        for category, label, row in rows:
            y = categories.index(category) * per_category + order.index(label)
            change = row["change"]
            interval = change["interval"] and [100 * end for end in change["interval"]]
            _draw_estimate(axes, y, 100 * change["value"], interval, of_policy[label])
        tops = [index * per_category for index in range(len(categories))]
        _name_rows(axes, categories, size, tops, per_category * len(categories) - 0.5, offset=0.0)
        axes.set_xlabel("change of right answers against the baseline, points", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def speed_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw tokens per second against the depth of the cache, for prefill and for decode."""
    phases = {row["phase"] for policy in document["policies"] for row in policy["speed"]}
    panels = [_speed_panel(phase) for phase in ("prefill", "decode") if phase in phases]
    return _stacked(document, panels, narrow, 3.4, prefix)


def layers_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw the bytes of every layer's K and V, as shades of a share of the baseline's."""
    full = {policy["label"]: _layer_bytes(policy) for policy in document["policies"]}
    reference = full.get(document["baseline"]) or {}
    rows = [(label, layers) for label, layers in full.items() if layers and label != document["baseline"]]
    if not reference or not rows:
        return None
    size = FigureSize(_NARROW if narrow else _WIDE, 1.0 + 0.62 * len(rows))
    with open_figure(size, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        for y, (_, layers) in enumerate(rows):
            for side, (top, color) in enumerate(((0.0, PLACEHOLDERS.k), (0.22, PLACEHOLDERS.v))):
                for layer, sizes in layers.items():
                    whole = reference.get(layer, (0, 0))[side]
                    share = min(1.0, sizes[side] / whole) if whole else 0.0
                    axes.barh(y + top, 0.86, 0.2, layer - 0.43, align="edge", color=color, alpha=share)
        _name_rows(axes, [label for label, _ in rows], size)
        axes.set_xlim(min(reference) - 0.6, max(reference) + 0.6)
        axes.grid(False)
        axes.set_xlabel("layer", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def _stacked(
    document: Document,
    panels: Sequence[Callable[[Axes, Document], None]],
    narrow: bool,
    height: float,
    prefix: str,
) -> str | None:
    """Panels beside each other, or below each other on a phone."""
    if not panels:
        return None
    n_rows, n_columns = (len(panels), 1) if narrow else (1, len(panels))
    size = FigureSize(_NARROW if narrow else _WIDE, height * n_rows)
    with open_figure(size, PLACEHOLDERS) as figure:
        grid = figure.subplots(n_rows, n_columns, squeeze=False)
        for axes, draw in zip(grid.flat, panels, strict=True):
            draw(axes, document)
        return themed_svg(figure, prefix)


def _kl_points(document: Document) -> dict[str, tuple[float, Document]]:
    """Size and divergence of every policy that has both, by label."""
    found = {}
    for policy in compared(document):
        ratio, row = ratio_of(policy), divergence_of(policy)
        if ratio is not None and row is not None and row["mean"] is not None:
            found[policy["label"]] = (ratio, row)
    return found


def _draw_kl_against_memory(axes: Axes, document: Document) -> None:
    of_policy = inks(document)
    drawn = _kl_points(document)
    places = {label: (ratio, max(row["mean"], KL_FLOOR)) for label, (ratio, row) in drawn.items()}
    front = step_front(list(places.values()))
    axes.plot(
        *zip(*front, strict=True), color=PLACEHOLDERS.rival, alpha=0.45, drawstyle="steps-post", zorder=1
    )
    for label, (x, y) in places.items():
        interval = drawn[label][1]["interval"]
        if interval is not None:
            ends = [max(end, KL_FLOOR) for end in interval]
            axes.plot([x, x], ends, color=of_policy[label].color, linewidth=1.6, zorder=2)
        axes.plot([x], [y], of_policy[label].marker, color=of_policy[label].color, markersize=7, zorder=3)
    floors = [row["floor"]["mean"] for _, row in drawn.values() if row["floor"] and row["floor"]["mean"]]
    if floors:
        axes.axhline(max(floors), color=PLACEHOLDERS.rival, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yscale("log")
    decade_axis(axes.yaxis)
    _finish_memory_axis(axes, "KL divergence, nats", document, places)


def _answers(document: Document) -> list[tuple[str, float | None, Document | None]]:
    return [(policy["label"], ratio_of(policy), total_of(policy)) for policy in document["policies"]]


def _draw_answers_against_memory(axes: Axes, document: Document) -> None:
    of_policy = inks(document)
    places: dict[str, tuple[float, float]] = {}
    for label, ratio, total in _answers(document):
        if ratio is None or total is None or total["other"]["rate"] is None:
            continue
        ink = of_policy[label]
        places[label] = (ratio, 100 * total["other"]["rate"])
        if total["other"]["interval"] is not None:
            ends = [100 * end for end in total["other"]["interval"]]
            axes.plot([ratio, ratio], ends, color=ink.color, linewidth=1.6, zorder=2)
        axes.plot(*places[label], ink.marker, color=ink.color, markersize=7, zorder=3)
    _finish_memory_axis(axes, "right answers, %", document, places)


def _finish_memory_axis(
    axes: Axes,
    title: str,
    document: Document,
    places: Mapping[str, tuple[float, float]],
) -> None:
    """The same sizes in every panel, from the smallest cache to the largest."""
    of_policy = inks(document)
    ratios = [ratio for policy in document["policies"] if (ratio := ratio_of(policy)) is not None]
    sizes = min(ratios), max(ratios)
    axes.set_xscale("log")
    axes.margins(y=0.14)
    axes.set_xlim(sizes[0] * 0.88, sizes[1] * 1.25)
    style_axes(axes, PLACEHOLDERS, title)
    axes.set_xlabel("KV cache, as a share of the baseline's", color=PLACEHOLDERS.text)
    ratio_axis(axes)
    longest = _LONGEST_LABEL[_NARROW]
    place_labels(
        axes, [(_cut(label, longest), place, of_policy[label].color) for label, place in places.items()]
    )


def _speed_panel(phase: str) -> Callable[[Axes, Document], None]:
    def draw(axes: Axes, document: Document) -> None:
        depths = sorted(
            {
                row["depth"]
                for policy in document["policies"]
                for row in policy["speed"]
                if row["phase"] == phase
            }
        )
        of_policy = inks(document)
        for policy in document["policies"]:
            rows = sorted(
                (row["depth"], row["tokens_per_second"])
                for row in policy["speed"]
                if row["phase"] == phase and row["tokens_per_second"] is not None
            )
            xs = [depths.index(depth) for depth, _ in rows]
            _draw_line(axes, xs, [speed for _, speed in rows], of_policy[policy["label"]])
        style_axes(axes, PLACEHOLDERS, f"{phase}, tokens/s")
        axes.set_xticks(range(len(depths)), [f"{depth:,}" for depth in depths])
        axes.margins(x=0.08)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens in the cache", color=PLACEHOLDERS.text)

    return draw


def _draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], ink: Ink) -> None:
    axes.plot(x, y, color=ink.color, marker=ink.marker, markersize=5, linestyle=ink.dash, linewidth=1.8)


def _draw_estimate(
    axes: Axes,
    y: float,
    value: float | None,
    interval: Sequence[float] | None,
    ink: Ink,
    hollow: bool = False,
) -> None:
    """A mark with its interval as a line; nothing where the value is unknown."""
    if value is None:
        return
    if interval is not None:
        axes.plot(interval, [y, y], color=ink.color, linewidth=2, zorder=2)
    face = PLACEHOLDERS.background if hollow else ink.color
    axes.plot([value], [y], ink.marker, color=ink.color, markerfacecolor=face, markersize=5.5, zorder=3)


def _name_rows(
    axes: Axes,
    names: Sequence[str],
    size: FigureSize,
    at: Sequence[float] | None = None,
    bottom: float | None = None,
    offset: float = 0.3,
) -> None:
    """Rows from above to below, each name at the left above its row, where it takes no width."""
    at = range(len(names)) if at is None else at
    style_axes(axes, PLACEHOLDERS, "")
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=PLACEHOLDERS.grid, linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.5 if bottom is None else bottom, -0.75)
    place: Any = axes.get_yaxis_transform()
    for y, name in zip(at, names, strict=True):
        text = _cut(name, _LONGEST_LABEL[size.width])
        axes.text(0, y - offset, text, transform=place, color=PLACEHOLDERS.text, va="center", clip_on=False)


def _visible(kl: Any) -> Any:
    """A divergence that a logarithmic axis can show; unknown stays unknown."""
    return None if kl is None else max(kl, KL_FLOOR)


def _layer_bytes(policy: Document) -> dict[int, tuple[int, int]]:
    memory = policy["memory"]
    return (
        {layer["layer"]: (layer["k_bytes"], layer["v_bytes"]) for layer in memory["layers"]} if memory else {}
    )


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
