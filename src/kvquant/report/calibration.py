"""A calibration in words and as a figure: predicted gain by layer, and what was measured on held-out text."""

from __future__ import annotations

import io
from pathlib import Path

from kvquant.files import write_atomic
from kvquant.report.drawing import LIGHT, SERIES, FigureSize, add_legend, open_figure, style_axes
from kvquant.results.calibration import CalibrationResult, Judgement
from kvquant.tables import NONE, UNKNOWN, Table, small, text
from kvquant.units import format_n_bytes

NOTHING = "none"


def calibration_text(result: CalibrationResult, width: int | None = None) -> str:
    """Return the table of layers, what was tried, and the judgement. width: of the terminal, None for any."""
    tokens = sum(result.contexts.values())
    sizes = " and ".join(result.contexts)
    lines = [
        f"{result.model.name} calibrated on {result.text.name}: {tokens} tokens in chunks of {sizes}, judged "
        f"with {result.policy.removeprefix('*:')}",
        "",
        text(layer_table(result), width),
        "",
    ]
    if result.trials:
        lines += [text(trial_table(result), width), ""]
    return "\n".join([*lines, *_judged(result)])


def layer_table(result: CalibrationResult) -> Table:
    """What each layer is given, and what every kind is predicted to gain there."""
    kinds = _kinds(result)
    rows = tuple(
        (str(layer.layer), layer.kind, *(_gain(layer.gain_db.get(kind)) for kind in kinds))
        for layer in result.layers
    )
    return Table(("layer", "kind", *(f"{kind} dB" for kind in kinds)), rows, words=(1,))


def trial_table(result: CalibrationResult) -> Table:
    """What was tried in the choice of kinds."""
    rows = tuple(
        (trial.name, small(trial.kl_mean), "taken" if trial.taken else "") for trial in result.trials
    )
    return Table(("tried", "KL", ""), rows, words=(2,))


def verdict(result: CalibrationResult) -> str:
    """Return in one sentence whether the transform helps."""
    judged = result.judgement
    if result.layers and all(layer.kind == NOTHING for layer in result.layers):
        return f"no kind is clearly better than none up to {result.n_ctx} tokens"
    if judged.better:
        return f"KL {_times(judged)} as large with the transform, to {result.n_ctx} tokens"
    if judged.kl_with >= judged.kl_without:
        return f"the transform is harmful: KL {_times(judged)} as large with it, to {result.n_ctx} tokens"
    return f"the gain cannot be told from chance: KL {_times(judged)} as large with the transform"


def write_figure(result: CalibrationResult, path: str | Path) -> None:
    """Write the predicted gain of each kind by layer as PNG or SVG. Raises KVQuantError if it cannot."""
    kind = Path(path).suffix.lower().removeprefix(".")
    with open_figure(FigureSize(8, 3.6), LIGHT) as figure:
        axes = figure.subplots()
        layers = [layer.layer for layer in result.layers]
        for color, name in zip(SERIES, _kinds(result), strict=False):
            gains = [layer.gain_db.get(name, float("nan")) for layer in result.layers]
            axes.plot(layers, gains, color=getattr(LIGHT, color), linewidth=1.5, label=name)
        taken = [(layer.layer, layer.gain_db[layer.kind]) for layer in result.layers if layer.kind != NOTHING]
        if taken:
            axes.plot(*zip(*taken, strict=True), "o", color=LIGHT.text, markersize=4.5, label="taken")
        axes.set_xlabel("layer", color=LIGHT.text)
        style_axes(axes, LIGHT, "Predicted gain, dB")
        add_legend(axes, LIGHT)
        buffer = io.BytesIO()
        # Without a date the same calibration gives the same bytes.
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
    write_atomic(path, buffer.getvalue())


def _judged(result: CalibrationResult) -> list[str]:
    judged = result.judgement
    rows = tuple(
        (f"{depth.first}-{depth.last}", small(depth.without), small(depth.with_transform))
        for depth in judged.by_depth
    )
    change = UNKNOWN
    if judged.change is not None:
        change = f"{judged.change.low:.3g} to {judged.change.high:.3g}"
    seconds = ", ".join(f"{step} {spent:.0f} s" for step, spent in result.seconds.items())
    lines = [
        text(Table(("position", "KL without", "KL with"), rows)),
        "",
        f"{judged.n_tokens} held-out tokens: KL {small(judged.kl_without)} without, {small(judged.kl_with)} "
        f"with; difference {change} (95 %)",
        verdict(result),
        f"took {seconds}",
    ]
    if result.transform is not None:
        used = result.transform
        lines.append(
            f"{used.name}: {used.n_layer} layers, {format_n_bytes(used.n_bytes)}, digest {used.digest}"
        )
    return lines


def _kinds(result: CalibrationResult) -> list[str]:
    return list(dict.fromkeys(kind for layer in result.layers for kind in layer.gain_db))


def _gain(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _times(judged: Judgement) -> str:
    return f"{judged.kl_with / judged.kl_without:.2f} times" if judged.kl_without else UNKNOWN
