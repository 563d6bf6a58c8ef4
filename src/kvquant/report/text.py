"""An analysis as text: what was measured, one line per layer, the rivals, the verdict."""

from __future__ import annotations

from kvquant.analysis import Analysis, LayerResult, MeanErrors, Summary
from kvquant.analysis.metrics import decibel
from kvquant.report.tables import columns, decibels, share, small
from kvquant.units import format_n_bytes

THIS_POLICY = "this policy"
NOT_RUNNABLE = "*"
UNROTATED = "unrotated %"


def analysis_text(analysis: Analysis) -> str:
    """Return the whole report, lines of at most about 110 characters apart from the verdict."""
    blocks = (
        header(analysis),
        columns(*layer_cells(analysis), left=(2, 3)),
        columns(*rival_cells(analysis)),
        "\n".join(note_lines(analysis)),
        f"Verdict: {analysis.verdict}",
    )
    return "\n\n".join(blocks)


def header(analysis: Analysis) -> str:
    """Three lines: the question, the data, what was sampled."""
    source = analysis.source
    seed = "" if source.seed is None else f", seed {source.seed}"
    return (
        f"{analysis.policy} on {analysis.model}, bytes at {analysis.n_ctx} tokens\n"
        f"data: {source.kind} {source.name}{seed}: {source.description}\n"
        f"sampled per layer: {source.n_tokens} tokens, {source.n_query} {source.queries} queries, "
        f"{source.n_head_kv} KV heads, {source.n_head} query heads"
    )


def layer_cells(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of the per-layer table."""
    head = [
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
    ]
    both = analysis.rotation == "both"
    return head + [UNROTATED] * both, [_layer_row(layer, both) for layer in analysis.layers]


def rival_cells(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of the table over all layers: the policy first, then every baseline."""
    head = ["policy", "bits", "bytes", "of f16", "K dB", "V dB", "logit", "KL", "output %"]
    both = analysis.rotation == "both"
    rivals = {THIS_POLICY: analysis.total, **analysis.baselines}
    return head + [UNROTATED] * both, [_summary_row(name, summary, both) for name, summary in rivals.items()]


def note_lines(analysis: Analysis) -> list[str]:
    """Return how to read the columns, a line each."""
    lines = [
        "dB: squared error over energy; lower is better.",
        "KL: of the attention distribution, in nats. logit: its logits' error, each query's mean taken out.",
        "output %: relative error of the attention output. K only, V only: with just that side quantized.",
    ]
    if analysis.rotation == "both":
        lines.append(
            f"{UNROTATED}: output % without llama.cpp's Hadamard rotation (LLAMA_ATTN_ROT_DISABLE=1)."
        )
    elif analysis.rotation == "off":
        lines.append("Everything is without llama.cpp's Hadamard rotation (LLAMA_ATTN_ROT_DISABLE=1).")
    if not all(summary.runnable for summary in (analysis.total, *analysis.baselines.values())):
        lines.append(f"{NOT_RUNNABLE}: llama.cpp has no such cache type; for comparison only.")
    return lines


def _layer_row(layer: LayerResult, unrotated: bool) -> list[str]:
    k, v, errors = layer.k, layer.v, layer.errors
    n_bytes = k.n_bytes + v.n_bytes
    stored_values = 8 * k.n_bytes / k.bits_per_value + 8 * v.n_bytes / v.bits_per_value
    row = [
        str(layer.layer),
        str(layer.kv_index),
        k.type,
        v.type,
        f"{8 * n_bytes / stored_values:.2f}",
        format_n_bytes(n_bytes),
        decibels(errors.k.nmse_db, errors.k.nmse == 0),
        decibels(errors.v.nmse_db, errors.v.nmse == 0),
        share(errors.k.attn_output_rel_error),
        share(errors.v.attn_output_rel_error),
        small(errors.attn_kl),
        share(errors.attn_output_rel_error),
    ]
    if unrotated:
        row.append(share(None if layer.unrotated is None else layer.unrotated.attn_output_rel_error))
    return row


def _summary_row(name: str, summary: Summary, unrotated: bool) -> list[str]:
    errors: MeanErrors = summary.errors
    row = [
        name if summary.runnable else name + NOT_RUNNABLE,
        f"{summary.bits_per_value:.2f}",
        format_n_bytes(summary.kv_bytes),
        f"{summary.ratio_vs_f16:.3f}x",
        decibels(decibel(errors.k_nmse), errors.k_nmse == 0),
        decibels(decibel(errors.v_nmse), errors.v_nmse == 0),
        small(errors.attn_logit_rmse),
        small(errors.attn_kl),
        share(errors.attn_output_rel_error),
    ]
    if unrotated:
        row.append(share(None if summary.unrotated is None else summary.unrotated.attn_output_rel_error))
    return row
