"""Tokens per second against depth by cache type, stock and patched, and what reading the memory allows: what
benchmarks/attention.py draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvquant.files import write_atomic
from kvquant.report.drawing import (
    PLACEHOLDERS,
    FigureSize,
    open_figure,
    standalone_svg,
    style_axes,
    themed_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"decode": "decode", "256": "prefill of 256"}
MODEL_TITLES = {
    "smollm2-135m": "SmolLM2-135M",
    "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B",
    "qwen2.5-coder-1.5b": "Qwen2.5-Coder-1.5B",
    "gqa2-128": "8 KV heads of 128",
    "gqa8-256": "2 KV heads of 256",
    "gqa2-128-wide": "8 KV heads of 128, wide embedding",
}
COLOURS = {
    "f16": PLACEHOLDERS.text,
    "q8_0": PLACEHOLDERS.series_1,
    "q4_0": PLACEHOLDERS.series_2,
    "0-10:q8_0,11-27:q4_0": PLACEHOLDERS.series_3,
    "*:k=q8_0/v=q4_0": PLACEHOLDERS.series_3,
}
STYLES = {"patched": {"linestyle": "-", "marker": "o"}, "stock": {"linestyle": "--", "marker": "x"}}
OF_THE_LIMIT = "q4_0"
"""The policy whose cache is read at the memory's speed in the curve of the limit: the smallest."""


def write_figure(record: dict[str, Any], path: Path) -> None:
    """Draw ``record`` into an SVG file."""
    write_atomic(path, attention_figure(record))


def attention_figure(record: dict[str, Any]) -> str:
    """Return the medians of ``record`` as SVG: a row of panels per model, a line per build and policy."""
    models = list(record["models"])
    with open_figure(FigureSize(10, 3.6 * len(models)), PLACEHOLDERS) as figure:
        axes = figure.subplots(len(models), len(PANELS), squeeze=False, sharex=True)
        for model, row in zip(models, axes, strict=True):
            for (what, title), panel in zip(PANELS.items(), row, strict=True):
                style_axes(panel, PLACEHOLDERS, f"{title}, {MODEL_TITLES[model]}")
                draw_panel(panel, record, model, what)
        lines, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
        for text in figure.legends[0].get_texts():
            text.set_color(PLACEHOLDERS.text)
        return standalone_svg(themed_svg(figure, "attention"))


def draw_panel(panel: Axes, record: dict[str, Any], model: str, what: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    speeds = {
        (row["build"], row["policy"], row["depth"]): row["tokens_per_second"]
        for row in record["summary"]["rows"]
        if (row["model"], row["what"]) == (model, what)
    }
    depths = sorted({depth for _, _, depth in speeds})
    for policy, colour in COLOURS.items():
        for build, style in STYLES.items():
            there = [n for n, depth in enumerate(depths) if (build, policy, depth) in speeds]
            if there:
                values = [speeds[build, policy, depths[n]] for n in there]
                panel.plot(there, values, color=colour, label=f"{policy}, {build}", markersize=5, **style)
    if what == "decode":
        limit = limits(record, model, speeds["patched", OF_THE_LIMIT, 0])
        label = f"{OF_THE_LIMIT}, read at the memory's speed"
        panel.plot(
            range(len(depths)),
            [limit[depth] for depth in depths],
            color=PLACEHOLDERS.text,
            linestyle=":",
            label=label,
        )
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylabel("tokens/s", color=PLACEHOLDERS.text)
    panel.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    panel.set_xlabel("tokens in the cache", color=PLACEHOLDERS.text)


def limits(record: dict[str, Any], model: str, at_depth_0: float) -> dict[int, float]:
    """Return depth -> tokens per second if depth cost no more than reading the cache from memory."""
    added = {
        row["depth"]: row["limit_ms"]
        for row in record["summary"]["bandwidth"]
        if (row["model"], row["build"], row["policy"]) == (model, "patched", OF_THE_LIMIT)
    }
    return {depth: 1e3 / (1e3 / at_depth_0 + ms) for depth, ms in {0: 0.0, **added}.items()}
