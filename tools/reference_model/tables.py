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
    """Return one row per cache setting: perplexities and divergence, with their uncertainties."""
    head = ["cache", "perplexity", "of answers", "KL from f16", "KL, answers", "same first choice"]
    rows = [
        [
            result["name"],
            f"{result['perplexity']:.3f}",
            f"{result['answer_perplexity']:.3f}",
            _spread(result["divergence"]),
            _spread(result["answer_divergence"]),
            f"{100 * result['same_top']:.2f} %",
        ]
        for result in results
    ]
    return _table(head, rows)


def _difference(cell: Mapping[str, Any]) -> str:
    change = (cell["n_gained"] - cell["n_lost"]) / cell["n"]
    low, high = cell["difference"]
    return f"{100 * change:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), p {_p_value(cell['p'])}"


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def recall_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return one row per cache setting: exact recall at every point, and how it differs from the first."""
    points = list(results[0]["recall"])
    head = ["cache"]
    for point in points:
        head += [point, "change from f16"]
    rows = []
    for number, result in enumerate(results):
        row = [result["name"]]
        for point in points:
            cell = result["recall"][point]
            row += [_recall(cell), _difference(cell) if number else ""]
        rows.append(row)
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


def _asked(part: Mapping[str, Any]) -> str:
    """Return how many questions stand behind each point of ``part``."""
    first = part["results"][0]["recall"]
    return "; ".join(f"{label}: {cell['n']} questions" for label, cell in first.items())


def page(record: Mapping[str, Any]) -> str:
    """Return the whole page of a record of `tools/measure_reference_model.py`."""
    uniform, long, layers = record["uniform"], record["long"], record["layers"]
    return "\n".join(
        [
            "# Response of the reference model to its KV cache",
            "",
            "Written by `tools/measure_reference_model.py` from `curves.json`; edit neither by hand. All on",
            "the test split. `unrotated` is LLAMA_ATTN_ROT_DISABLE; `tq_mse_*` are TurboQuant without its",
            "residual stage.",
            "",
            "## Perplexity and divergence",
            "",
            "KL in nats per token; ± is the standard error over documents.",
            "",
            response_table(uniform["results"]),
            "",
            "## Recall",
            "",
            "Exact answers in percent, with 95 % Wilson intervals, and the change from an f16 cache on the",
            "same questions in percentage points, with the adjusted Wald interval for paired samples and the",
            "exact p of McNemar's test. The questions of one prompt share a cache; intervals and p take them",
            "as independent.",
            "",
            f"{_asked(uniform)}.",
            "",
            recall_table(uniform["results"]),
            "",
            _source(uniform),
            "",
            "## Recall over long prompts",
            "",
            f"{_asked(long)}.",
            "",
            recall_table(long["results"]),
            "",
            _source(long),
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
