"""The figures of an analysis, drawn once for files and for pages."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvquant.analysis import Analysis, Summary
from kvquant.files import write_atomic
from kvquant.report.drawing import (
    LIGHT,
    PLACEHOLDERS,
    FigureSize,
    Palette,
    add_legend,
    cut,
    open_figure,
    place_labels,
    ratio_axis,
    step_front,
    style_axes,
    themed_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THIS_POLICY = "this policy"

FLOOR = 1e-5
"""Relative error at which "no error at all" is drawn on a logarithmic axis."""

REFERENCES = ("q8_0", "q4_0")
"""Baselines drawn layer by layer beside the policy."""

_LONGEST_NAME = 72
"""Characters of a policy or a model's name that a title has room for."""


def layers_svg(analysis: Analysis, size: FigureSize, prefix: str) -> str:
    """Return the per-layer figure, errors above bytes, as themed SVG; ``prefix`` keeps its ids apart."""
    with open_figure(size, PLACEHOLDERS) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        draw_errors(above, analysis, PLACEHOLDERS)
        draw_bytes(below, analysis, PLACEHOLDERS)
        return themed_svg(figure, prefix)


def front_svg(analysis: Analysis, size: FigureSize, prefix: str) -> str:
    """Return the figure of error against bytes as themed SVG; ``prefix`` keeps its ids apart."""
    with open_figure(size, PLACEHOLDERS) as figure:
        draw_front(figure.subplots(), analysis, PLACEHOLDERS)
        return themed_svg(figure, prefix)


def write_plot(analysis: Analysis, path: str | Path) -> None:
    """Write all figures side by side to ``path``, PNG or SVG by suffix. Raises KVQuantError if it cannot."""
    kind = Path(path).suffix.lower().removeprefix(".")
    with open_figure(FigureSize(13, 6), LIGHT) as figure:
        panels = figure.subplot_mosaic([["errors", "front"], ["bytes", "front"]], height_ratios=(3, 2))
        panels["bytes"].sharex(panels["errors"])
        draw_errors(panels["errors"], analysis, LIGHT)
        draw_bytes(panels["bytes"], analysis, LIGHT)
        draw_front(panels["front"], analysis, LIGHT, "Error against size")
        title = f"{cut(analysis.policy, _LONGEST_NAME)} on {cut(analysis.model, _LONGEST_NAME)}"
        figure.suptitle(title, color=LIGHT.text, fontweight="bold")
        buffer = io.BytesIO()
        # Without a date the same analysis gives the same bytes.
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    write_atomic(path, buffer.getvalue())


def draw_errors(axes: Axes, analysis: Analysis, palette: Palette) -> None:
    """Draw the attention-output error of every layer: the policy as dots, the reference types as lines."""
    layers = [layer.layer for layer in analysis.layers]
    dashes = ("-", (0, (4, 2)))
    for name, dash in zip(REFERENCES, dashes, strict=True):
        if name in analysis.baselines:
            errors = _drawable(analysis.baselines[name].layer_attn_output_rel_error)
            axes.plot(layers, errors, color=palette.rival, linewidth=1.3, linestyle=dash, label=f"all {name}")
    errors = _drawable(analysis.total.layer_attn_output_rel_error)
    axes.plot(layers, errors, "o", color=palette.policy, markersize=4.5, label=THIS_POLICY, clip_on=False)
    axes.set_yscale("log")
    _percent_axis(axes.yaxis)
    axes.margins(y=0.15)
    style_axes(axes, palette, "Output error")
    add_legend(axes, palette)


def draw_bytes(axes: Axes, analysis: Analysis, palette: Palette) -> None:
    """Draw the bytes of every layer, V on top of K, and what f16 would take."""
    from matplotlib.ticker import MaxNLocator

    mebi = 1024**2
    layers = [layer.layer for layer in analysis.layers]
    k = [layer.k.bytes / mebi for layer in analysis.layers]
    v = [layer.v.bytes / mebi for layer in analysis.layers]
    axes.bar(layers, k, width=0.8, color=palette.k, label="K")
    axes.bar(layers, v, width=0.8, bottom=k, color=palette.v, label="V")
    if "f16" in analysis.baselines:
        in_f16 = [n / mebi for n in analysis.baselines["f16"].layer_bytes]
        axes.step(layers, in_f16, where="mid", color=palette.rival, linewidth=1.3, label="all f16")
    axes.set_xlabel("layer", color=palette.text)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(layers[0] - 0.8, layers[-1] + 0.8)
    style_axes(axes, palette, "MiB")
    add_legend(axes, palette)


def draw_front(axes: Axes, analysis: Analysis, palette: Palette, title: str = "") -> None:
    """Draw error against size of all policies, with the Pareto front of what llama.cpp can run."""
    rivals = {name: s for name, s in analysis.baselines.items() if s.attn_output_rel_error is not None}
    front = pareto_front([analysis.total, *rivals.values()])
    if front:
        style: dict[str, Any] = {"alpha": 0.45, "linewidth": 1.6, "zorder": 1, "drawstyle": "steps-post"}
        axes.plot(*zip(*front, strict=True), color=palette.rival, label="Pareto front", **style)
    for runnable, face, label in ((True, palette.rival, "llama.cpp type"), (False, "none", "research")):
        group = [_point(summary) for summary in rivals.values() if summary.runnable is runnable]
        if group:
            style = {"markerfacecolor": face, "markersize": 7, "zorder": 2}
            axes.plot(*zip(*group, strict=True), "o", color=palette.rival, label=label, **style)
    points = [(name, _point(summary), palette.text) for name, summary in rivals.items()]
    if analysis.total.attn_output_rel_error is not None:
        axes.plot(*_point(analysis.total), "D", color=palette.policy, markersize=9, zorder=3)
        points.insert(0, (THIS_POLICY, _point(analysis.total), palette.policy))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.14, 0.1)
    style_axes(axes, palette, title)
    add_legend(axes, palette)
    axes.set_xlabel("size, as a share of f16", color=palette.text)
    axes.set_ylabel("attention-output error", color=palette.text)
    _percent_axis(axes.yaxis)
    ratio_axis(axes)
    place_labels(axes, points)


def pareto_front(summaries: Sequence[Summary]) -> list[tuple[float, float]]:
    """Return the (size, error) points, by size, that no other runnable one beats in both."""
    drawable = (s for s in summaries if s.runnable and s.attn_output_rel_error is not None)
    return step_front([_point(summary) for summary in drawable])


def _drawable(errors: Sequence[float | None]) -> list[float]:
    """Errors for a logarithmic axis: none at all goes to FLOOR, unknown leaves a gap."""
    return [float("nan") if error is None else max(error, FLOOR) for error in errors]


def _point(summary: Summary) -> tuple[float, float]:
    return summary.ratio_vs_f16, max(summary.attn_output_rel_error or 0.0, FLOOR)


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axis.set_minor_formatter(NullFormatter())
