"""Draw what the series' own types cost, from the records that transform_real.py keeps in NAME.types.*.json.

python benchmarks/types_figure.py  # writes docs/figures/small-types.svg
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvquant.files import write_atomic
from kvquant.formats.registry import OWN_TYPES
from kvquant.report.drawing import (
    PLACEHOLDERS,
    FigureSize,
    decade_axis,
    open_figure,
    place_labels,
    standalone_svg,
    style_axes,
    themed_svg,
)
from kvquant.results.divergence import DivergenceResult, PolicyDivergence
from transform_tables import REAL_MODELS, divergences, of_own_types

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE = Path(__file__).resolve().parent.parent / "docs/figures/small-types.svg"
TEXT = "prose"
LEGEND = {
    "llama.cpp's types, with the transform (hollow: without)": PLACEHOLDERS.series_1,
    "with tq3, tq2, k5x3 or k4x2": PLACEHOLDERS.series_2,
}


def records() -> dict[str, DivergenceResult]:
    """Return the records on prose by the model's title."""
    found = {name: result for name, result in divergences().items() if of_own_types(name)}
    return {
        title: result
        for model, title in REAL_MODELS.items()
        for name, result in found.items()
        if name.startswith(model) and name.endswith(f".{TEXT}")
    }


def figure(results: dict[str, DivergenceResult]) -> str:
    """Return KL divergence against bytes as SVG, a panel for each model."""
    n_columns = min(2, len(results))
    n_rows = -(-len(results) // n_columns)
    with open_figure(FigureSize(10, 4.1 * n_rows + 0.5), PLACEHOLDERS) as drawn:
        for index, (title, result) in enumerate(results.items(), start=1):
            _draw(drawn.add_subplot(n_rows, n_columns, index), title, result)
        for panel, result in zip(drawn.axes, results.values(), strict=True):
            shown = [one for one in result.policies if one.transform is not None and one.kl_mean]
            place_labels(
                panel, [(_name(one), (one.of_f16, one.kl_mean), _color(one)) for one in shown if one.kl_mean]
            )
        _legend(drawn)
        return standalone_svg(themed_svg(drawn, "types"))


def _draw(axes: Axes, title: str, result: DivergenceResult) -> None:
    plain = {one.policy: one.kl_mean for one in result.policies if one.transform is None}
    for one in result.policies:
        if one.transform is None or not one.kl_mean:
            continue
        color, without = _color(one), plain.get(one.policy)
        if without:
            axes.plot([one.of_f16] * 2, [without, one.kl_mean], color=color, linewidth=1)
            axes.plot([one.of_f16], [without], "o", color=color, markerfacecolor=PLACEHOLDERS.background)
        axes.plot([one.of_f16], [one.kl_mean], "o", color=color)
    axes.set_yscale("log")
    axes.set_xlim(0.10, 0.46)
    decade_axis(axes.yaxis)
    style_axes(axes, PLACEHOLDERS, f"{title}: KL divergence, nats")
    axes.set_xlabel("bytes of the cache, of f16", color=PLACEHOLDERS.text)


def _legend(drawn: Figure) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], linestyle="none", marker="o", color=color) for color in LEGEND.values()]
    drawn.legend(
        lines,
        list(LEGEND),
        loc="outside lower center",
        ncols=1,
        frameon=False,
        labelcolor=PLACEHOLDERS.text,
    )


def _color(policy: PolicyDivergence) -> str:
    own, theirs = PLACEHOLDERS.series_2, PLACEHOLDERS.series_1
    return str(own if any(name in policy.policy for name in OWN_TYPES) else theirs)


def _name(policy: PolicyDivergence) -> str:
    return policy.policy.removeprefix("*:").replace("k=", "").replace("v=", "")


if __name__ == "__main__":
    write_atomic(FIGURE, figure(records()))
