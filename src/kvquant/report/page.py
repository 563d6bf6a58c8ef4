"""An analysis as one self-contained page: no scripts, no network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from shlex import quote

from kvquant.analysis import Analysis
from kvquant.files import write_atomic
from kvquant.report.drawing import FigureSize
from kvquant.report.figures import front_svg, layers_svg
from kvquant.report.html import (
    bullets,
    class_attribute,
    escape,
    figure,
    folded,
    pairs,
    table,
    tiles,
    whole_page,
)
from kvquant.report.tables import share, small
from kvquant.report.text import layer_cells, note_lines, rival_cells
from kvquant.units import format_n_bytes

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
    words = ["kvquant", "analyze", "--layers", quote(analysis.policy), "--ctx", str(analysis.n_ctx)]
    if (analysis.default_k, analysis.default_v) != ("f16", "f16"):
        words += ["--default", f"k={analysis.default_k}/v={analysis.default_v}"]
    words += [f"--{source.kind}", quote(source.name)]
    if source.seed is not None:
        words += ["--seed", str(source.seed)]
    words += ["--rotation", analysis.rotation]
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
            ("attention output", f"{share(total.errors.attn_output_rel_error)} %", "relative error"),
            ("attention distribution", small(total.errors.attn_kl), "KL divergence, nats"),
        )
    )


def _verdict(verdict: str) -> str:
    first, *others = verdict.rstrip(".").split("; ")
    points = "".join(f"<li>{escape(part[0].upper() + part[1:])}.</li>" for part in others)
    return f'<section class="verdict" aria-label="Verdict"><p>{escape(first)}.</p><ul>{points}</ul></section>'


def _warnings(warnings: Sequence[str]) -> str:
    return "".join(f"<p><strong>Warning:</strong> {escape(warning)}</p>" for warning in warnings)


def _layers_figure(analysis: Analysis) -> str:
    known = [(error, i) for i, error in enumerate(analysis.total.layer_errors) if error is not None]
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
        "Lower left is better. Above the line something that llama.cpp can run is smaller and more accurate.",
    )


def _rivals(analysis: Analysis) -> str:
    head, rows = rival_cells(analysis)
    return f"<h2>Beside other policies</h2>\n{table(head, rows, 'Over all layers', marked=(0,))}"


def _layers(analysis: Analysis) -> str:
    head, rows = layer_cells(analysis)
    every = table(head, rows, "Every layer that keeps a cache", words=(2, 3))
    return f"<h2>All layers</h2>\n{folded(f'Show the {len(rows)} layers', every)}"


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
        ("Written by", f"kvquant {escape(version('kvquant'))}"),
    )
    return f"<h2>Where this comes from</h2>\n{pairs(entries)}"
