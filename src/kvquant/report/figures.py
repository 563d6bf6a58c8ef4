"""The figures of an analysis, drawn once for files and for pages.

A page needs figures that follow its light or dark colours. There each colour is drawn as a placeholder value
and replaced in the SVG by the CSS variable of its role, so no figure is drawn twice for a theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvquant.analysis import Analysis, Summary
from kvquant.files import write_atomic
from kvquant.report.text import THIS_POLICY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOOR = 1e-5
"""Relative error at which "no error at all" is drawn on a logarithmic axis."""

REFERENCES = ("q8_0", "q4_0")
"""Baselines drawn layer by layer beside the policy."""

_LONGEST_NAME = 72
"""Characters of a policy or a model's name that a title has room for."""

_LABEL_OFFSETS = (
    (7, 7),
    (8, 0),
    (7, -8),
    (-7, 7),
    (-8, 0),
    (-7, -8),
    (0, 13),
    (0, -13),
    (7, 18),
    (7, -18),
    (-7, 18),
)
"""Where a label may stand relative to its point, in points, the first free place being taken."""


@dataclass(frozen=True)
class Palette:
    """Colours by role: background, text, lines of the grid, K, V, the policy, its rivals."""

    background: str
    text: str
    grid: str
    k: str
    v: str
    policy: str
    rival: str


LIGHT = Palette("#ffffff", "#1c2430", "#d5dae1", "#0072b2", "#e69f00", "#c43c00", "#5b6675")
DARK = Palette("#14181f", "#e8ecf1", "#333c48", "#56b4e9", "#f0b840", "#ff8a5c", "#9aa7b6")
_PLACEHOLDERS = Palette(*(f"#fe00{i:02x}" for i in range(len(fields(Palette)))))


@dataclass(frozen=True)
class FigureSize:
    """Inches of a figure, wide for a screen or a file, narrow for a phone."""

    width: float
    height: float


def css_variables(palette: Palette) -> str:
    """Return the declarations of the variables that `themed_svg` uses, one per role."""
    return " ".join(f"--{field.name}: {getattr(palette, field.name)};" for field in fields(Palette))


def layers_svg(analysis: Analysis, size: FigureSize, prefix: str) -> str:
    """Return the per-layer figure, errors above bytes, as themed SVG; ``prefix`` keeps its ids apart."""
    with _figure(size, _PLACEHOLDERS) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        draw_errors(above, analysis, _PLACEHOLDERS)
        draw_bytes(below, analysis, _PLACEHOLDERS)
        return themed_svg(figure, prefix)


def front_svg(analysis: Analysis, size: FigureSize, prefix: str) -> str:
    """Return the figure of error against bytes as themed SVG; ``prefix`` keeps its ids apart."""
    with _figure(size, _PLACEHOLDERS) as figure:
        draw_front(figure.subplots(), analysis, _PLACEHOLDERS)
        return themed_svg(figure, prefix)


def write_plot(analysis: Analysis, path: str | Path) -> None:
    """Write all figures side by side to ``path``, PNG or SVG by suffix. Raises KVQuantError if it cannot."""
    kind = Path(path).suffix.lower().removeprefix(".")
    with _figure(FigureSize(13, 6), LIGHT) as figure:
        panels = figure.subplot_mosaic([["errors", "front"], ["bytes", "front"]], height_ratios=(3, 2))
        panels["bytes"].sharex(panels["errors"])
        draw_errors(panels["errors"], analysis, LIGHT)
        draw_bytes(panels["bytes"], analysis, LIGHT)
        draw_front(panels["front"], analysis, LIGHT, "Error against size")
        title = f"{_cut(analysis.policy)} on {_cut(analysis.model)}"
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
            errors = _drawable(analysis.baselines[name].layer_errors)
            axes.plot(layers, errors, color=palette.rival, linewidth=1.3, linestyle=dash, label=f"all {name}")
    errors = _drawable(analysis.total.layer_errors)
    axes.plot(layers, errors, "o", color=palette.policy, markersize=4.5, label=THIS_POLICY, clip_on=False)
    axes.set_yscale("log")
    _percent_axis(axes.yaxis)
    axes.margins(y=0.15)
    _style(axes, palette, "Output error")
    _legend(axes, palette)


def draw_bytes(axes: Axes, analysis: Analysis, palette: Palette) -> None:
    """Draw the bytes of every layer, V on top of K, and what f16 would take."""
    from matplotlib.ticker import MaxNLocator

    mebi = 1024**2
    layers = [layer.layer for layer in analysis.layers]
    k = [layer.k.n_bytes / mebi for layer in analysis.layers]
    v = [layer.v.n_bytes / mebi for layer in analysis.layers]
    axes.bar(layers, k, width=0.8, color=palette.k, label="K")
    axes.bar(layers, v, width=0.8, bottom=k, color=palette.v, label="V")
    if "f16" in analysis.baselines:
        in_f16 = [n / mebi for n in analysis.baselines["f16"].layer_bytes]
        axes.step(layers, in_f16, where="mid", color=palette.rival, linewidth=1.3, label="all f16")
    axes.set_xlabel("layer", color=palette.text)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(layers[0] - 0.8, layers[-1] + 0.8)
    _style(axes, palette, "MiB")
    _legend(axes, palette)


def draw_front(axes: Axes, analysis: Analysis, palette: Palette, title: str = "") -> None:
    """Draw error against size of all policies, with the Pareto front of what llama.cpp can run."""
    rivals = {name: s for name, s in analysis.baselines.items() if s.errors.attn_output_rel_error is not None}
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
    if analysis.total.errors.attn_output_rel_error is not None:
        axes.plot(*_point(analysis.total), "D", color=palette.policy, markersize=9, zorder=3)
        points.insert(0, (THIS_POLICY, _point(analysis.total), palette.policy))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.14, 0.1)
    _style(axes, palette, title)
    _legend(axes, palette)
    axes.set_xlabel("size, as a share of f16", color=palette.text)
    axes.set_ylabel("attention-output error", color=palette.text)
    _percent_axis(axes.yaxis)
    _ratio_axis(axes)
    _place_labels(axes, points)


def pareto_front(summaries: Sequence[Summary]) -> list[tuple[float, float]]:
    """Return the (size, error) points, by size, that no other runnable one beats in both."""
    points = sorted(_point(s) for s in summaries if s.runnable and s.errors.attn_output_rel_error is not None)
    front: list[tuple[float, float]] = []
    for point in points:
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def themed_svg(figure: Figure, prefix: str) -> str:
    """Return ``figure``, drawn in placeholder colours, as <svg> that takes its colours from CSS variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for field in fields(Palette):
        svg = svg.replace(getattr(_PLACEHOLDERS, field.name), f"var(--{field.name})")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Ids are unique per figure only, a page holds several.
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    # The figure scales with the page; its text is described beside it.
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1
    )


@contextmanager
def _figure(size: FigureSize, palette: Palette) -> Iterator[Figure]:
    """A figure that is closed at the end and leaves matplotlib's global settings alone."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as MatplotlibFigure

    settings: Any = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "kvquant",
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "xtick.color": palette.text,
        "ytick.color": palette.text,
    }
    with mpl.rc_context(settings):
        figure = MatplotlibFigure(figsize=(size.width, size.height), layout="constrained")
        figure.set_facecolor(palette.background)
        yield figure


def _style(axes: Axes, palette: Palette, title: str) -> None:
    axes.set_title(title, loc="left", color=palette.text, fontweight="bold")
    axes.set_facecolor(palette.background)
    axes.grid(True, axis="y", color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=palette.text)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.grid)


def _legend(axes: Axes, palette: Palette) -> None:
    """A one-line legend at the right end of the title's line, if there is anything to name."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        labelcolor=palette.text,
        borderaxespad=0.2,
        handlelength=1.3,
        handletextpad=0.5,
        columnspacing=1.0,
    )


def _cut(text: str) -> str:
    """``text`` for a title, its end left out where it would not fit."""
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"


def _drawable(errors: Sequence[float | None]) -> list[float]:
    """Errors for a logarithmic axis: none at all goes to FLOOR, unknown leaves a gap."""
    return [float("nan") if error is None else max(error, FLOOR) for error in errors]


def _point(summary: Summary) -> tuple[float, float]:
    return summary.ratio_vs_f16, max(summary.errors.attn_output_rel_error or 0.0, FLOOR)


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axis.set_minor_formatter(NullFormatter())


def _ratio_axis(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0) if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}x"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _place_labels(axes: Axes, points: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Write each name beside its point, at the first offset where it covers neither a point nor a label."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure: Any = axes.get_figure(root=True)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    scale = figure.dpi / 72
    marks = [axes.transData.transform(point) for _, point, _ in points]
    taken = [Bbox.from_extents(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in marks]
    area = axes.get_window_extent(renderer)
    for name, point, color in points:
        for offset in _LABEL_OFFSETS:
            side = "left" if offset[0] > 0 else "right" if offset[0] < 0 else "center"
            label = axes.annotate(
                name, point, offset, textcoords="offset points", ha=side, va="center", color=color, zorder=4
            )
            box = label.get_window_extent(renderer)
            inside = area.x0 <= box.x0 and box.x1 <= area.x1
            if offset is _LABEL_OFFSETS[-1] or (inside and not any(box.overlaps(other) for other in taken)):
                taken.append(box)
                break
            label.remove()
