"""Figures of the reference model's training and of its response to the cache, as SVG, from their records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

from kvquant.report.drawing import (
    PLACEHOLDERS,
    SERIES,
    FigureSize,
    decade_axis,
    open_figure,
    standalone_svg,
    style_axes,
    themed_svg,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TASK_ORDER = ("recall", "stream", "copy", "follow", "grid", "language", "chat", "arithmetic")


@contextmanager
def _drawn(n_panels: int, height: float = 3.6) -> Iterator[tuple[Figure, list[Any]]]:
    """A figure with panels side by side, in colours that follow the page's scheme."""
    from matplotlib import cycler

    colours = cycler(color=[getattr(PLACEHOLDERS, name) for name in SERIES])
    with open_figure(FigureSize(5.2 * n_panels, height), PLACEHOLDERS) as figure:
        panels = list(figure.subplots(1, n_panels, squeeze=False)[0])
        for panel in panels:
            style_axes(panel, PLACEHOLDERS, "")
            panel.set_prop_cycle(cycler(linestyle=["-", "--"]) * colours)
        yield figure, panels


def _svg(figure: Figure) -> str:
    """Return ``figure`` as a file of its own, in both schemes, whose text depends on what it shows alone."""
    for panel in figure.axes:
        if panel.get_yscale() == "log":
            decade_axis(panel.yaxis)
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set_color(PLACEHOLDERS.text)
        legend = panel.get_legend()
        if legend is not None:
            legend.set_frame_on(False)
            for text in legend.get_texts():
                text.set_color(PLACEHOLDERS.text)
    return standalone_svg(themed_svg(figure, "reference"))


def read_log(text: str) -> list[dict[str, Any]]:
    """Return the rows of a training log, one JSON object a line."""
    return [json.loads(line) for line in text.splitlines()]


def training_figure(rows: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the loss and the share of right answer tokens by task, against tokens read.

    ``again`` is the log of another seed, whose loss is drawn beside the first one's.
    """
    with _drawn(2) as (figure, (left, right)):
        millions = [row["n_tokens"] / 1e6 for row in rows]
        left.plot(millions, [row["loss"] for row in rows], color=PLACEHOLDERS.series_1, label="shipped")
        if again:
            read = [row["n_tokens"] / 1e6 for row in again]
            left.plot(
                read, [row["loss"] for row in again], "--", color=PLACEHOLDERS.series_2, label="another seed"
            )
            left.legend(fontsize=7)
        left.set(xlabel="tokens read (million)", ylabel="training loss (nats)", yscale="log")
        for task in _TASK_ORDER:
            points = [(row["n_tokens"] / 1e6, row["right"][task]) for row in rows if task in row["right"]]
            right.plot(*zip(*points, strict=True), label=task)
        right.set(xlabel="tokens read (million)", ylabel="answer tokens right (training)", ylim=(0, 1.02))
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        for panel in (left, right):
            for _, stage in groupby(rows, key=lambda row: row["stage"]):
                first = next(stage)
                panel.axvline(first["n_tokens"] / 1e6, color=PLACEHOLDERS.rival, linewidth=0.5, linestyle=":")
        starts = [next(group) for _, group in groupby(rows, key=lambda row: row["stage"])]
        for start in starts:
            left.annotate(
                f"{start['stage']} ({start['n_layer']})",
                (start["n_tokens"] / 1e6, left.get_ylim()[1]),
                rotation=90,
                fontsize=6,
                va="top",
                color=PLACEHOLDERS.text,
            )
        return _svg(figure)


def response_figure(results: Sequence[Mapping[str, Any]]) -> str:
    """Return recall with 95 % intervals, and divergence from an f16 cache, for every uniform setting."""
    with _drawn(2, height=4.2) as (figure, (left, right)):
        names = [result["name"] for result in results]
        places = range(len(results))
        for label in results[0]["recall"]:
            cells = [result["recall"][label] for result in results]
            rates = [cell["n_right"] / cell["n"] for cell in cells]
            below = [max(0.0, rate - cell["low"]) for rate, cell in zip(rates, cells, strict=True)]
            above = [max(0.0, cell["high"] - rate) for rate, cell in zip(rates, cells, strict=True)]
            left.errorbar(places, rates, yerr=[below, above], marker="o", capsize=2, label=label)
        left.set(ylabel="exact recall (test split)", ylim=(0, 1.02))
        left.legend(fontsize=7)
        for key, label in (("divergence", "all tokens"), ("answer_divergence", "answers")):
            means = [result[key]["mean"] for result in results]
            errors = [result[key]["error"] for result in results]
            right.errorbar(places, means, yerr=errors, marker="o", capsize=2, linestyle="none", label=label)
        right.set(ylabel="KL from an f16 cache (nats per token)", yscale="log")
        right.legend(fontsize=7)
        for panel in (left, right):
            panel.set_xticks(list(places), names, rotation=60, ha="right", fontsize=7)
        return _svg(figure)


def difference_figure(*parts: Sequence[Mapping[str, Any]]) -> str:
    """Return the change of recall from an f16 cache on the same questions, 95 % intervals; a panel a part.

    The first setting of each part is the f16 cache itself and is not drawn.
    """
    with _drawn(len(parts), height=4.2) as (figure, panels):
        for panel, (_, *results) in zip(panels, parts, strict=True):
            # Linear to one point, then logarithmic: 4 bits and 2 bits in one picture.
            panel.set_yscale("symlog", linthresh=1.0)
            labels = list(results[0]["recall"])
            for number, label in enumerate(labels):
                cells = [result["recall"][label] for result in results]
                changes = [100 * (cell["n_gained"] - cell["n_lost"]) / cell["n"] for cell in cells]
                ends = [[100 * end for end in cell["difference"]] for cell in cells]
                below = [max(0.0, at - low) for at, (low, _) in zip(changes, ends, strict=True)]
                above = [max(0.0, high - at) for at, (_, high) in zip(changes, ends, strict=True)]
                places = [place + 0.2 * (number - (len(labels) - 1) / 2) for place in range(len(cells))]
                panel.errorbar(
                    places, changes, yerr=[below, above], marker="o", capsize=2, linestyle="none", label=label
                )
            panel.axhline(0, color=PLACEHOLDERS.rival, linewidth=0.8)
            panel.set(ylabel="recall, change from f16 (percentage points)")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.set_xticks(
                range(len(results)),
                [result["name"] for result in results],
                rotation=60,
                ha="right",
                fontsize=7,
            )
            panel.legend(fontsize=7, loc="lower left")
        return _svg(figure)


def sensitivity_figure(
    layers: Sequence[Mapping[str, Any]], ablations: Sequence[Mapping[str, float]], type_name: str
) -> str:
    """Return the divergence when one K or V alone is kept in ``type_name``, and when a layer is left out."""
    with _drawn(2) as (figure, (left, right)):
        n_layer = len(ablations)
        divergence = {result["name"]: result["divergence"]["mean"] for result in layers}
        for side in ("k", "v"):
            values = [divergence[f"{side}{layer}"] for layer in range(n_layer)]
            left.plot(values, marker="o", markersize=3, linestyle="none", label=side.upper())
        left.set(xlabel="layer", ylabel=f"KL, one side in {type_name} (nats per token)", yscale="log")
        left.legend(fontsize=7)
        for part in ("attention", "layer"):
            right.plot(
                [row[f"without_{part}"] for row in ablations],
                marker="o",
                markersize=3,
                label=f"without its {part}",
            )
        right.set(xlabel="layer", ylabel="KL (nats per token)", yscale="log")
        right.legend(fontsize=7)
        return _svg(figure)
