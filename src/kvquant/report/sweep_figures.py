"""The figures of a sweep, as SVG that follows a page's colours; None where nothing of the kind is known.

A model has one colour in all of them, a policy one mark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from kvquant.report.drawing import (
    PLACEHOLDERS,
    SERIES,
    FigureSize,
    cut,
    open_figure,
    place_labels,
    style_axes,
    themed_svg,
)
from kvquant.report.sweep_tables import answered_text, several_boards
from kvquant.report.validation_figures import LONGEST_LABEL, NARROW, WIDE, Ink, draw_line, name_rows
from kvquant.results.sweep import CellRecord, DecisionRow, Ending, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = ("o", "s", "D", "^", "v", "P")
_DASHES = ("solid", "dashed", "dotted")
MIB = 2**20


def inks(result: SweepResult) -> dict[tuple[str, str], Ink]:
    """Return how each model (colour) under each policy (mark and dash) is drawn."""
    models = list(dict.fromkeys(row.model for row in result.rows))
    policies = list(dict.fromkeys(row.variant for row in result.rows))
    return {
        (row.model, row.variant): Ink(
            SERIES[models.index(row.model) % len(SERIES)],
            _MARKERS[policies.index(row.variant) % len(_MARKERS)],
            _DASHES[policies.index(row.variant) % len(_DASHES)],
        )
        for row in result.rows
    }


def row_name(row: DecisionRow, with_board: bool) -> str:
    """A row in a figure."""
    return f"{row.model} {row.label}{f', {row.board}' if with_board else ''}"


def memory_svg(result: SweepResult, narrow: bool, prefix: str) -> str | None:
    """Draw host memory against decode at depth: one point per model and policy."""
    rows = [row for row in result.rows if row.host_bytes is not None and row.decode_deep is not None]
    if not rows:
        return None
    with open_figure(FigureSize(NARROW if narrow else WIDE, 4.2), PLACEHOLDERS) as figure:
        axes = figure.subplots()
        points, of_row = [], inks(result)
        for row in rows:
            ink = of_row[row.model, row.variant]
            at = ((row.host_bytes or 0) / MIB, row.decode_deep or 0.0)
            axes.plot([at[0]], [at[1]], ink.marker, color=ink.color, markersize=8, zorder=3)
            points.append((cut(row_name(row, several_boards(result)), LONGEST_LABEL[NARROW]), at, ink.color))
        axes.margins(x=0.18, y=0.18)
        style_axes(axes, PLACEHOLDERS, "decode at depth, tokens/s")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("host memory in all, MiB", color=PLACEHOLDERS.text)
        place_labels(axes, points)
        return themed_svg(figure, prefix)


def settings_svg(result: SweepResult, narrow: bool, prefix: str) -> str | None:
    """Draw decode at depth under every setting: a row for each, a mark for each policy, a line between
    its rounds.
    """
    cells = [cell for cell in result.cells if cell.ending is Ending.DONE and cell.points]
    groups: dict[str, dict[str, list[float]]] = {}
    models: dict[str, str] = {}
    for cell in cells:
        speed = _deepest(cell)
        if speed is not None:
            name = _setting_name(cell, several_boards(result))
            groups.setdefault(name, {}).setdefault(cell.setting.variant or "as served", []).append(speed)
            models[name] = cell.setting.model
    if len(groups) < 2:
        return None
    size = FigureSize(NARROW if narrow else WIDE, 1.0 + 0.42 * len(groups))
    with open_figure(size, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        of_row = inks(result)
        for y, (name, by_policy) in enumerate(groups.items()):
            for policy, speeds in by_policy.items():
                ink = of_row[models[name], policy]
                axes.plot([min(speeds), max(speeds)], [y, y], color=ink.color, linewidth=1.4, zorder=2)
                axes.plot([median(speeds)], [y], ink.marker, color=ink.color, markersize=6, zorder=3)
        axes.set_xlim(left=0)
        name_rows(axes, list(groups), size)
        axes.set_xlabel("decode at the deepest point, tokens/s", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def _deepest(cell: CellRecord) -> float | None:
    point = max(cell.points, key=lambda found: found.depth)
    return point.decode


def _setting_name(cell: CellRecord, with_board: bool) -> str:
    setting = cell.setting
    threads = "auto" if setting.n_threads is None else setting.n_threads
    cores = "" if setting.cpus == "all" else f" on {setting.cpus}"
    board = f", {cell.board}" if with_board else ""
    way = f"{threads} threads{cores}, fa {setting.flash_attn}, context {setting.n_ctx:,}"
    return f"{setting.model}: {way}{board}"


def depth_svg(result: SweepResult, narrow: bool, prefix: str) -> str | None:
    """Draw prefill and decode against the tokens in the cache, each row under its best setting."""
    panels = [_depth_panel(result, phase) for phase in ("prefill", "decode")]
    depths = {point.depth for cell in result.cells for point in cell.points}
    if len(depths) < 2 or not any(row.depth for row in result.rows):
        return None
    n_rows, n_columns = (2, 1) if narrow else (1, 2)
    with open_figure(FigureSize(NARROW if narrow else WIDE, 3.4 * n_rows), PLACEHOLDERS) as figure:
        grid = figure.subplots(n_rows, n_columns, squeeze=False)
        for axes, draw in zip(grid.flat, panels, strict=True):
            draw(axes)
        return themed_svg(figure, prefix)


def _depth_panel(result: SweepResult, phase: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        of_row = inks(result)
        for row in result.rows:
            by_depth: dict[int, list[float]] = {}
            for cell in result.cells:
                if not _is_of(cell, row):
                    continue
                for point in cell.points:
                    value = point.prefill if phase == "prefill" else point.decode
                    if value is not None:
                        by_depth.setdefault(point.depth, []).append(value)
            if by_depth:
                depths = sorted(by_depth)
                draw_line(axes, depths, [median(by_depth[d]) for d in depths], of_row[row.model, row.variant])
        style_axes(axes, PLACEHOLDERS, f"{phase}, tokens/s")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.08)
        axes.set_xlabel("tokens in the cache", color=PLACEHOLDERS.text)

    return draw


def _is_of(cell: CellRecord, row: DecisionRow) -> bool:
    setting = cell.setting
    way = (setting.n_threads, setting.cpus, setting.flash_attn)
    of_row = (row.n_threads, row.cpus, row.flash_attn)
    same = (cell.board, setting.model, setting.variant or "as served") == (row.board, row.model, row.variant)
    return same and way == of_row and cell.ending is Ending.DONE


def context_svg(result: SweepResult, narrow: bool, prefix: str) -> str | None:
    """Draw the contexts that load, answer, and answer again and again: a row for each model and policy."""
    rows = [row for row in result.rows if row.loaded_ctx is not None and row.source is None]
    if not rows:
        return None
    size = FigureSize(NARROW if narrow else WIDE, 1.1 + 0.45 * len(rows))
    with open_figure(size, PLACEHOLDERS) as figure:
        axes = figure.subplots()
        of_row = inks(result)
        for y, row in enumerate(rows):
            ink = of_row[row.model, row.variant]
            axes.barh(y, row.loaded_ctx or 0, 0.3, color=ink.color, alpha=0.25)
            axes.barh(y, row.answered_ctx or 0, 0.3, color=ink.color, alpha=0.55)
            axes.barh(y, row.stable_ctx or 0, 0.3, color=ink.color)
        axes.set_xlim(left=0)
        name_rows(axes, [row_name(row, several_boards(result)) for row in rows], size)
        axes.set_xlabel("context, tokens", color=PLACEHOLDERS.text)
        return themed_svg(figure, prefix)


def key_entries(result: SweepResult, svg: str) -> Sequence[tuple[str, str, str]]:
    """The models and policies whose colour is in a figure, for its key."""
    found = {}
    for row in result.rows:
        ink = inks(result)[row.model, row.variant]
        if f"var(--{ink.role})" in svg:
            found[f"{row.model} {row.label}"] = (f"{row.model} {row.label}", ink.role, ink.dash)
    return tuple(found.values())


def described(row: DecisionRow) -> str:
    """A row's contexts in words."""
    return f"{row.model} {row.label}: {answered_text(row, row.stable_ctx)}"
