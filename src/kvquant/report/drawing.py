"""What all figures share: palettes, figures that leave no trace, axes in house style, themed SVG.

A page needs figures that follow its light or dark colours. There each colour is drawn as a placeholder value
and replaced in the SVG by the CSS variable of its role, so no figure is drawn twice for a theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    """Colours by role.

    background, text, lines of the grid; K and V; the policy and its rivals, or what is stressed and what is
    played down; good, caution and bad news; a colour for each of several policies in one figure.
    """

    background: str
    text: str
    grid: str
    k: str
    v: str
    policy: str
    rival: str
    good: str
    caution: str
    bad: str
    series_1: str
    series_2: str
    series_3: str
    series_4: str
    series_5: str
    series_6: str


_LIGHT_ROLES = ("#ffffff", "#1c2430", "#d5dae1", "#0072b2", "#e69f00", "#c43c00", "#5b6675")
_LIGHT_NEWS = ("#1a7f37", "#8a5a00", "#bf2a2f")
_LIGHT_SERIES = ("#0072b2", "#c43c00", "#00805f", "#8a3ea8", "#8a6d00", "#b0246e")
LIGHT = Palette(*_LIGHT_ROLES, *_LIGHT_NEWS, *_LIGHT_SERIES)
_DARK_ROLES = ("#14181f", "#e8ecf1", "#333c48", "#56b4e9", "#f0b840", "#ff8a5c", "#9aa7b6")
_DARK_NEWS = ("#4cc38a", "#e3b341", "#ff7b72")
_DARK_SERIES = ("#56b4e9", "#ff8a5c", "#3fcf9f", "#d59bff", "#e5c44a", "#ff85b8")
DARK = Palette(*_DARK_ROLES, *_DARK_NEWS, *_DARK_SERIES)
SERIES = tuple(field.name for field in fields(Palette) if field.name.startswith("series_"))
PLACEHOLDERS = Palette(*(f"#fe00{i:02x}" for i in range(len(fields(Palette)))))


@dataclass(frozen=True)
class FigureSize:
    """Inches of a figure, wide for a screen or a file, narrow for a phone."""

    width: float
    height: float


def css_variables(palette: Palette) -> str:
    """Return the declarations of the variables that `themed_svg` uses, one per role."""
    return " ".join(f"--{field.name}: {getattr(palette, field.name)};" for field in fields(Palette))


def step_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points, by their first coordinate, that no other one beats in both; small is good."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def cut(text: str, longest: int) -> str:
    """Return ``text``, its end left out where it would not fit."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def themed_svg(figure: Figure, prefix: str) -> str:
    """Return ``figure``, drawn in placeholder colours, as <svg> that takes its colours from CSS variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for field in fields(Palette):
        svg = svg.replace(getattr(PLACEHOLDERS, field.name), f"var(--{field.name})")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Ids are unique per figure only, a page holds several.
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    # The figure scales with the page; its text is described beside it.
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1
    )


def standalone_svg(themed: str) -> str:
    """Return a figure of `themed_svg` as a file of its own, which brings both palettes and its background."""
    style = (
        f"<style>:root {{ {css_variables(LIGHT)} }} "
        f"@media (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK)} }} }} "
        "text { font-family: system-ui, sans-serif !important; }</style>"
        '<rect width="100%" height="100%" style="fill: var(--background)"/>'
    )
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opening, rest = themed.split(">", 1)
    return f"{opening.replace('<svg', f'<svg {spaces}', 1)}>{style}{rest}"


@contextmanager
def open_figure(size: FigureSize, palette: Palette) -> Iterator[Figure]:
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


def style_axes(axes: Axes, palette: Palette, title: str) -> None:
    axes.set_title(title, loc="left", color=palette.text, fontweight="bold")
    axes.set_facecolor(palette.background)
    axes.grid(True, axis="y", color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=palette.text)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.grid)


def add_legend(axes: Axes, palette: Palette) -> None:
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


def ratio_axis(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0) if low <= tick <= high]
    if len(ticks) < 3:
        ticks = [
            tick for tick in (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if low <= tick <= high
        ] or ticks
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}x"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def decade_axis(axis: Any) -> None:
    """Label a logarithmic axis at powers of ten, and at twos and fives where it spans few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(base=10, subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def place_labels(axes: Axes, points: Sequence[tuple[str, tuple[float, float], str]]) -> None:
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
