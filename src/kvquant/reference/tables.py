"""The measured response of the reference model as a page of tables, from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_row(head), "|" + "---|" * len(head), *(_row(row) for row in rows)])


def _recall(cell: Mapping[str, float]) -> str:
    rate = cell["n_right"] / cell["n"]
    return f"{100 * rate:.1f} % ({100 * cell['low']:.1f}–{100 * cell['high']:.1f})"


def _spread(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.5f} ± {value['error']:.5f}"


def response_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return one row per cache setting: recall, perplexities, divergence, with their uncertainties."""
    pairs = list(results[0]["recall"])
    head = ["cache", *(f"recall, {n} pairs" for n in pairs), "perplexity", "of answers"]
    head += ["KL from f16", "KL, answers", "same first choice"]
    rows = [
        [
            result["name"],
            *(_recall(result["recall"][n]) for n in pairs),
            f"{result['perplexity']:.3f}",
            f"{result['answer_perplexity']:.3f}",
            _spread(result["divergence"]),
            _spread(result["answer_divergence"]),
            f"{100 * result['same_top']:.2f} %",
        ]
        for result in results
    ]
    return _table(head, rows)


def layer_table(layers: Sequence[Mapping[str, Any]], ablations: Sequence[Mapping[str, float]]) -> str:
    """Return one row per layer: divergence with one side quantized, and with parts left out."""
    kl = {result["name"]: result["divergence"]["mean"] for result in layers}
    rows = []
    for row in ablations:
        layer = row["layer"]
        quantized = [f"{kl[f'{side}{layer}']:.6f}" for side in ("k", "v")]
        left_out = [f"{row[key]:.4f}" for key in ("without_attention", "without_layer")]
        rows.append([str(layer), *quantized, *left_out])
    return _table(["layer", "K quantized", "V quantized", "without attention", "without the layer"], rows)


def _source(part: Mapping[str, Any]) -> str:
    source = part["provenance"]
    arguments = " ".join(f"{name}={value}" for name, value in sorted(source["arguments"].items()))
    return (
        f"Model SHA-256 `{source['model_sha256']}`, commit `{source['commit']}`, torch {source['torch']}, "
        f"arguments `{arguments}`."
    )


def page(record: Mapping[str, Any]) -> str:
    """Return the whole page of a record of `tools/measure_reference_model.py`."""
    uniform, layers = record["uniform"], record["layers"]
    asked = ", ".join(
        f"{cell['n']} questions at {n} pairs" for n, cell in uniform["results"][0]["recall"].items()
    )
    return "\n".join(
        [
            "# Response of the reference model to its KV cache",
            "",
            "Written by `tools/measure_reference_model.py` from `curves.json`; edit neither by hand.",
            "All on the test split. KL in nats per token. Brackets are 95 % Wilson intervals over questions,",
            "± is the standard error over documents.",
            "",
            "## Uniform caches",
            "",
            f"Recall over {asked}. `unrotated` is LLAMA_ATTN_ROT_DISABLE; `tq_mse_*` are TurboQuant without",
            "its residual stage.",
            "",
            response_table(uniform["results"]),
            "",
            _source(uniform),
            "",
            "## One layer at a time",
            "",
            f"KL from an f16 cache with K or V of one layer in {layers['type']} and all else f16; KL from",
            "the whole model with a layer's attention, or all of it, left out.",
            "",
            layer_table(layers["results"], layers["ablations"]),
            "",
            _source(layers),
            "",
        ]
    )
