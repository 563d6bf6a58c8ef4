"""The figures of a validation, as SVG that follows a page's colours; None where nothing of the kind is known.

``narrow`` figures are for phones. ``prefix`` keeps the ids of several figures on a page apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvquant.report.drawing import PLACEHOLDERS, FigureSize, decade_axis, open_figure, style_axes, themed_svg
from kvquant.report.validation_document import Document, compared, divergence_of
from kvquant.report.validation_marks import (
    NARROW,
    WIDE,
    Panel,
    draw_estimate,
    draw_line,
    inks,
    name_rows,
    stacked,
    visible,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def divergence_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw the mean KL divergence of each policy with its interval and the floor."""
    rows = [policy for policy in compared(document) if policy["divergence"]]
    if not rows:
        return None
    size = FigureSize(NARROW if narrow else WIDE, 1.1 + 0.52 * len(rows))
    with open_figure(size, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        of_policy = inks(document)
        for y, policy in enumerate(rows):
            ink = of_policy[policy["label"]]
            for row in policy["divergence"]:
                hollow = row["path"] == "prefill"
                if row["mean"] is not None:
                    at = y - 0.09 if hollow else y + 0.09
                    interval = row["interval"] and [visible(end) for end in row["interval"]]
                    draw_estimate(axes, at, visible(row["mean"]), interval, ink, hollow)
                if row["floor"] is not None and row["floor"]["mean"] is not None:
                    floor = visible(row["floor"]["mean"])
                    axes.plot([floor], [y], "|", color=PLACEHOLDERS.rival, markersize=13)
        axes.set_xscale("log")
        decade_axis(axes.xaxis)
        name_rows(axes, [policy["label"] for policy in rows], size)
        axes.set_xlabel("mean KL divergence per token, nats", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def positions_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw KL divergence by the token's position."""
    rows = [(policy, row) for policy in compared(document) if (row := divergence_of(policy)) is not None]
    drawn = [(policy["label"], row["by_position"]) for policy, row in rows if row["by_position"]]
    if not drawn:
        return None
    with open_figure(FigureSize(NARROW if narrow else WIDE, 3.6), PLACEHOLDERS) as figure:
        axes = figure.subplots()
        of_policy = inks(document)
        for label, bins in drawn:
            middles = [(part["first"] + part["last"]) / 2 for part in bins]
            draw_line(axes, middles, [visible(part["mean"]) for part in bins], of_policy[label])
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
    order = list(dict.fromkeys(label for _, label, _ in rows))
    per_category = 1 + len(order)
    size = FigureSize(NARROW if narrow else WIDE, 1.0 + 0.17 * per_category * len(categories))
    with open_figure(size, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=PLACEHOLDERS.rival, linewidth=1.2, zorder=1)
        for category, label, row in rows:
            y = categories.index(category) * per_category + 1 + order.index(label)
            change = row["change"]
            interval = change["interval"] and [100 * end for end in change["interval"]]
            draw_estimate(axes, y, 100 * change["value"], interval, of_policy[label])
        tops = [index * per_category for index in range(len(categories))]
        name_rows(axes, categories, size, tops, per_category * len(categories) - 0.5, offset=0.0)
        axes.set_xlabel("change of right answers against the baseline, points", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def speed_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw tokens per second against the depth of the cache, for prefill and for decode."""
    phases = {row["phase"] for policy in document["policies"] for row in policy["speed"]}
    panels = [_speed_panel(phase) for phase in ("prefill", "decode") if phase in phases]
    return stacked(document, panels, narrow, 3.4, prefix)


def layers_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw the bytes of every layer's K and V, as shades of a share of the baseline's."""
    full = {policy["label"]: _layer_bytes(policy) for policy in document["policies"]}
    reference = full.get(document["baseline"]) or {}
    rows = [(label, layers) for label, layers in full.items() if layers and label != document["baseline"]]
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
            draw_line(axes, xs, [speed for _, speed in rows], of_policy[policy["label"]])
        style_axes(axes, PLACEHOLDERS, f"{phase}, tokens/s")
        axes.set_xticks(range(len(depths)), [f"{depth:,}" for depth in depths])
        axes.margins(x=0.08)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens in the cache", color=PLACEHOLDERS.text)

    return draw


def _layer_bytes(policy: Document) -> dict[int, tuple[int, int]]:
    memory = policy["memory"]
    return (
        {layer["layer"]: (layer["k_bytes"], layer["v_bytes"]) for layer in memory["layers"]} if memory else {}
    )
