"""The figure that a choice starts from: what each policy's memory buys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvquant.report.drawing import (
    PLACEHOLDERS,
    cut,
    decade_axis,
    place_labels,
    ratio_axis,
    step_front,
    style_axes,
)
from kvquant.report.validation_document import Document, compared, divergence_of, ratio_of, total_of
from kvquant.report.validation_marks import LONGEST_LABEL, NARROW, Panel, inks, stacked, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def quality_svg(document: Document, narrow: bool, prefix: str) -> str | None:
    """Draw memory against quality: KL divergence, and right answers."""
    panels: list[Panel] = []
    if _kl_points(document):
        panels.append(_draw_kl_against_memory)
    if any(total is not None and ratio is not None for _, ratio, total in _answers(document)):
        panels.append(_draw_answers_against_memory)
    return stacked(document, panels, narrow, 4.2, prefix)


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
    places = {label: (ratio, visible(row["mean"])) for label, (ratio, row) in drawn.items()}
    front = step_front(list(places.values()))
    axes.plot(
        *zip(*front, strict=True), color=PLACEHOLDERS.rival, alpha=0.45, drawstyle="steps-post", zorder=1
    )
    for label, (x, y) in places.items():
        interval = drawn[label][1]["interval"]
        if interval is not None:
            ends = [visible(end) for end in interval]
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
    longest = LONGEST_LABEL[NARROW]
    place_labels(
        axes, [(cut(label, longest), place, of_policy[label].color) for label, place in places.items()]
    )
