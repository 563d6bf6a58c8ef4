"""An analysis as text, and as one self-contained page: no scripts, no network, light and dark, any screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from kvquant.analysis import Analysis, LayerResult, Summary
from kvquant.files import write_atomic
from kvquant.report.analysis_figures import THIS_POLICY, front_svg, layers_svg
from kvquant.report.drawing import FigureSize
from kvquant.report.html import bullets, figure, folded, pairs, tiles, whole_page
from kvquant.report.transform import transform_line
from kvquant.shipped import VERSION
from kvquant.tables import Table, class_attribute, decibels, html_table, printable, share, small, text
from kvquant.tables import escape_html as escape
from kvquant.units import format_n_bytes

NOT_RUNNABLE = "*"
UNROTATED = "unrotated %"


def analysis_text(analysis: Analysis, width: int | None = None) -> str:
    """Return the whole report, lines of at most about 110 characters apart from the verdict.

    width: of the terminal, None for no limit.
    """
    blocks = (
        header(analysis),
        text(layer_table(analysis), width),
        text(rival_table(analysis), width),
        "\n".join(note_lines(analysis)),
        f"Verdict: {analysis.verdict}",
    )
    return printable("\n\n".join(blocks))


def header(analysis: Analysis) -> str:
    """The question, the data, what was sampled, a line each; with a transform, what it is."""
    source = analysis.source
    seed = "" if source.seed is None else f", seed {source.seed}"
    transform = analysis.transform
    through = "" if transform is None else f"K through transform {transform_line(transform)}\n"
    return (
        f"{analysis.policy} on {analysis.model}, bytes at {analysis.n_ctx} tokens\n{through}"
        f"data: {source.kind} {source.name}{seed}: {source.description}\n"
        f"sampled per layer: {source.n_tokens} tokens, {source.n_query} {source.queries} queries, "
        f"{source.n_head_kv} KV heads, {source.n_head} query heads"
    )


def layer_table(analysis: Analysis) -> Table:
    """Return the per-layer table."""
    head = (
        "layer",
        "kv",
        "K",
        "V",
        "bits",
        "bytes",
        "K dB",
        "V dB",
        "K only %",
        "V only %",
        "KL",
        "output %",
    )
    both = analysis.rotation == "both"
    rows = tuple(_layer_row(layer, both) for layer in analysis.layers)
    return Table(head + (UNROTATED,) * both, rows, words=(2, 3))


def rival_table(analysis: Analysis) -> Table:
    """Return the table over all layers: the policy first, then every baseline."""
    head = ("policy", "bits", "bytes", "of f16", "K dB", "V dB", "logit", "KL", "output %")
    both = analysis.rotation == "both"
    rivals = {THIS_POLICY: analysis.total, **analysis.baselines}
    rows = tuple(_summary_row(name, summary, both) for name, summary in rivals.items())
    return Table(head + (UNROTATED,) * both, rows)


def note_lines(analysis: Analysis) -> list[str]:
    """Return how to read the columns, a line each."""
    lines = [
        "dB: squared error over energy; lower is better.",
        "KL: of the attention distribution, in nats. logit: error of its logits, without each query's mean.",
        "output %: relative error of the attention output. K only, V only: with only that side quantized.",
    ]
    if analysis.rotation == "both":
        lines.append(
            f"{UNROTATED}: output % without llama.cpp's Hadamard rotation (LLAMA_ATTN_ROT_DISABLE=1)."
        )
    elif analysis.rotation == "off":
        lines.append("All numbers are without llama.cpp's Hadamard rotation (LLAMA_ATTN_ROT_DISABLE=1).")
    if not all(summary.runnable for summary in (analysis.total, *analysis.baselines.values())):
        lines.append(f"{NOT_RUNNABLE}: not a cache type of llama.cpp; for comparison only.")
    return lines


def _layer_row(layer: LayerResult, unrotated: bool) -> tuple[str, ...]:
    k, v = layer.k, layer.v
    n_bytes = k.bytes + v.bytes
    stored_values = 8 * k.bytes / k.bits_per_value + 8 * v.bytes / v.bits_per_value
    row = [
        str(layer.layer),
        str(layer.kv_index),
        k.type,
        v.type,
        f"{8 * n_bytes / stored_values:.2f}",
        format_n_bytes(n_bytes),
        decibels(k.nmse_db, k.nmse == 0),
        decibels(v.nmse_db, v.nmse == 0),
        share(k.attn_output_rel_error),
        share(v.attn_output_rel_error),
        small(layer.attn_kl),
        share(layer.attn_output_rel_error),
    ]
    if unrotated:
        row.append(share(None if layer.unrotated is None else layer.unrotated.attn_output_rel_error))
    return tuple(row)


def _summary_row(name: str, summary: Summary, unrotated: bool) -> tuple[str, ...]:
    row = [
        name if summary.runnable else name + NOT_RUNNABLE,
        f"{summary.bits_per_value:.2f}",
        format_n_bytes(summary.kv_bytes),
        f"{summary.ratio_vs_f16:.3f}x",
        decibels(summary.k_nmse_db, summary.k_nmse == 0),
        decibels(summary.v_nmse_db, summary.v_nmse == 0),
        small(summary.attn_logit_rmse),
        small(summary.attn_kl),
        share(summary.attn_output_rel_error),
    ]
    if unrotated:
        row.append(share(None if summary.unrotated is None else summary.unrotated.attn_output_rel_error))
    return tuple(row)


_LONG_POLICY = 48
"""Characters from which a policy is written smaller, as the heading of a page."""


def write_page(analysis: Analysis, path: str | Path) -> None:
    """Write the page to ``path``, whole or not at all. Raises KVQuantError when it cannot be written."""
    write_atomic(path, analysis_page(analysis))


def analysis_page(analysis: Analysis) -> str:
    """Return the page as HTML text."""
    title = f"{analysis.policy} on {analysis.model}"
    body = (
        _heading(analysis.policy),
        f'<p class="subject">KV cache of {escape(analysis.model)}, {len(analysis.layers)} layers with a '
        f"cache, bytes at {analysis.n_ctx} tokens</p>",
        _tiles(analysis),
        _verdict(analysis.verdict),
        _warnings(analysis.warnings),
        _layers_figure(analysis),
        _front_figure(analysis),
        _rivals(analysis),
        _layers(analysis),
        _notes(analysis),
        _provenance(analysis),
    )
    return whole_page(title, body)


def command_line(analysis: Analysis) -> str:
    """Return a command that repeats the analysis, as far as options name it."""
    source = analysis.source
    words = ["kvquant", "analyze", "--policy", quote(analysis.policy), "--ctx", str(analysis.n_ctx)]
    if (analysis.default.k, analysis.default.v) != ("f16", "f16"):
        words += ["--default", f"k={analysis.default.k}/v={analysis.default.v}"]
    words += [f"--{source.kind}", quote(source.name)]
    if source.seed is not None:
        words += ["--seed", str(source.seed)]
    words += ["--rotation", analysis.rotation]
    words += [] if analysis.transform is None else ["--transform", quote(analysis.transform.name)]
    return " ".join(words)


def _heading(policy: str) -> str:
    # Lines break after commas, where one rule ends.
    rules = escape(policy).replace(",", ",<wbr>")
    return f"<h1{class_attribute('long', len(policy) > _LONG_POLICY)}><code>{rules}</code></h1>"


def _tiles(analysis: Analysis) -> str:
    total = analysis.total
    return tiles(
        (
            ("size", f"{total.ratio_vs_f16:.2f}x", "of an f16 cache"),
            ("bytes", format_n_bytes(total.kv_bytes), f"instead of {format_n_bytes(total.kv_bytes_f16)}"),
            ("attention output", f"{share(total.attn_output_rel_error)} %", "relative error"),
            ("attention distribution", small(total.attn_kl), "KL divergence, nats"),
        )
    )


def _verdict(verdict: str) -> str:
    first, *others = verdict.rstrip(".").split("; ")
    points = "".join(f"<li>{escape(part[0].upper() + part[1:])}.</li>" for part in others)
    return f'<section class="verdict" aria-label="Verdict"><p>{escape(first)}.</p><ul>{points}</ul></section>'


def _warnings(warnings: Sequence[str]) -> str:
    return "".join(f"<p><strong>Warning:</strong> {escape(warning)}</p>" for warning in warnings)


def _layers_figure(analysis: Analysis) -> str:
    known = [
        (error, i) for i, error in enumerate(analysis.total.layer_attn_output_rel_error) if error is not None
    ]
    worst = (
        f"the largest error is {share(max(known)[0])} % in layer {analysis.layers[max(known)[1]].layer}"
        if known
        else ""
    )
    return figure(
        "Layer by layer",
        layers_svg(analysis, FigureSize(10, 5), "lw"),
        layers_svg(analysis, FigureSize(4.4, 5), "ln"),
        f"Attention-output error and bytes of each layer; {worst}. The table below has the numbers.",
        "Above: relative error of the attention output under this policy (dots) and with all layers in one "
        "type (lines). Below: bytes of K and V.",
    )


def _front_figure(analysis: Analysis) -> str:
    return figure(
        "Error against size",
        front_svg(analysis, FigureSize(10, 5), "fw"),
        front_svg(analysis, FigureSize(4.4, 4.6), "fn"),
        "Attention-output error against size for this policy and all others. The next table has the numbers.",
        "Lower left is better. For anything above the line, llama.cpp can run something smaller and more "
        "accurate.",
    )


def _rivals(analysis: Analysis) -> str:
    table = html_table(rival_table(analysis), "Over all layers", marked=(0,))
    return f"<h2>Beside other policies</h2>\n{table}"


def _layers(analysis: Analysis) -> str:
    every = html_table(layer_table(analysis), "Every layer that keeps a cache")
    return f"<h2>All layers</h2>\n{folded(f'Show the {len(analysis.layers)} layers', every)}"


def _notes(analysis: Analysis) -> str:
    return f"<h2>How to read the numbers</h2>\n{bullets(note_lines(analysis))}"


def _provenance(analysis: Analysis) -> str:
    source = analysis.source
    entries = (
        ("Data", f"{source.kind} <code>{escape(source.name)}</code>: {escape(source.description)}"),
        (
            "Sampled per layer",
            f"{source.n_tokens} tokens, {source.n_query} {source.queries} queries, "
            f"{source.n_head_kv} KV heads, {source.n_head} query heads",
        ),
        ("Command", f"<code>{escape(command_line(analysis))}</code>"),
        ("Written by", f"kvquant {escape(VERSION)}"),
    )
    return f"<h2>Where this comes from</h2>\n{pairs(entries)}"
