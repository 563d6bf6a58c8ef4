"""How the figures of a validation draw a policy: the same ink in all of them, its marks, its name.

The baseline is played down, the others have colours of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvquant.report.drawing import (
    PLACEHOLDERS,
    SERIES,
    FigureSize,
    cut,
    open_figure,
    style_axes,
    themed_svg,
)
from kvquant.report.validation_document import Document, compared

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Callable[["Axes", Document], None]
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


def inks(document: Document) -> dict[str, Ink]:
    """Return every policy's ink by its label: colours first, other marks and dashes when they run out."""
    found = {}
    for index, policy in enumerate(compared(document)):
        style = index // len(SERIES) % len(_MARKERS)
        found[policy["label"]] = Ink(SERIES[index % len(SERIES)], _MARKERS[style], _DASHES[style])
    return {document["baseline"]: Ink("rival", "o", "solid"), **found}


def stacked(
    document: Document,
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
            draw(axes, document)
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
