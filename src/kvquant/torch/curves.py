"""How the reference model responds to its KV cache: one pass over held-out text for every cache setting.

Each setting reads the same prompts and documents of the test split, so differences between settings are
paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kvquant.policy import parse_policy, resolve
from kvquant.reference.model import ReferenceModel, WriteKV, model_shape
from kvquant.reference.scoring import (
    Reading,
    Share,
    log_probabilities,
    read,
    recall_readings,
    right_answers,
)
from kvquant.reference.tasks import Size, Split, held_out_documents
from kvquant.torch.writing import QuantizedKV

BASELINE = "f16"

UNIFORM_TYPES = ("q8_0", "q5_0", "q4_0")
RESEARCH_TYPES = ("tq_mse_4b", "tq_mse_3b", "tq_mse_2b")


@dataclass(frozen=True)
class Setting:
    """One way to keep the cache: a policy, and whether llama.cpp's rotation is on."""

    name: str
    policy: str
    rotate: bool = True

    def writer(self, model: ReferenceModel) -> WriteKV:
        """Return the function that passes the K and V of ``model`` through this cache."""
        return QuantizedKV(resolve(parse_policy(self.policy), model_shape(model.config)), rotate=self.rotate)


def uniform_settings() -> tuple[Setting, ...]:
    """Return the settings of the main curve: f16, ggml types with and without rotation, TurboQuant."""
    ggml = (
        Setting(f"{name}{'' if rotate else ' unrotated'}", f"*:{name}", rotate)
        for name in UNIFORM_TYPES
        for rotate in (True, False)
    )
    return (
        Setting(BASELINE, f"*:{BASELINE}"),
        *ggml,
        *(Setting(name, f"*:{name}") for name in RESEARCH_TYPES),
    )


def layer_settings(n_layer: int, type_name: str) -> tuple[Setting, ...]:
    """Return settings that keep one side of one layer in ``type_name`` and all else in f16."""
    return tuple(
        Setting(f"{side}{layer}", f"{layer}:{side}={type_name}")
        for layer in range(n_layer)
        for side in ("k", "v")
    )


def draw_prompts(
    seed: int, pairs: Sequence[int], n_tokens: int, n_prompts: int
) -> dict[int, Sequence[Reading]]:
    """Return, for each number of pairs, ``n_prompts`` recall prompts of the test split that ask them all."""
    return {n: recall_readings(seed, Split.TEST, n, n_tokens, n_prompts) for n in pairs}


def draw_documents(seed: int, n_documents: int, n_tokens: int, most_pairs: int) -> list[Reading]:
    """Return ``n_documents`` documents of the test split, the tasks in turn."""
    documents = held_out_documents(seed, Split.TEST, n_documents, Size(n_tokens, most_pairs))
    return [read(document) for document in documents]


@dataclass(frozen=True)
class _Spread:
    """A mean over documents with its standard error (NaN for fewer than two)."""

    mean: float
    error: float

    @staticmethod
    def of(values: Sequence[float]) -> _Spread:
        mean = math.fsum(values) / len(values)
        if len(values) < 2:
            return _Spread(mean, math.nan)
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return _Spread(mean, math.sqrt(variance / len(values)))


def _nll(reading: Reading, log_probability: Tensor) -> Tensor:
    """Return the negative log-probability of each true next token in nats, (n_tokens - 1,)."""
    return -log_probability.gather(1, reading.tokens[1:, None])[:, 0]


def _divergence(baseline: Tensor, other: Tensor) -> Tensor:
    """Return KL(baseline || other) in nats for each position of two (n, n_vocab) log-probabilities."""
    return (baseline.exp() * (baseline - other)).sum(-1)


def measure(
    model: ReferenceModel,
    settings: Sequence[Setting],
    prompts: Mapping[int, Sequence[Reading]],
    documents: Sequence[Reading],
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return one JSON object per setting.

    recall: number of pairs to {n_right, n, low, high} (95 % Wilson interval). perplexity: over all tokens of
    the documents; answer_perplexity: over those the text before decides. divergence: mean KL from an f16
    cache in nats per token, answer_divergence over answers only, with standard errors over documents.
    same_top: share of positions with the f16 cache's first choice. ``report`` is told of each setting when it
    is done.
    """
    baseline = Setting(BASELINE, f"*:{BASELINE}").writer(model)
    reference = [log_probabilities(model, reading, baseline) for reading in documents]
    results = []
    for setting in settings:
        write = setting.writer(model)
        result: dict[str, Any] = {"name": setting.name, "policy": setting.policy, "rotate": setting.rotate}
        result["recall"] = {str(n): _recall(model, write, readings) for n, readings in prompts.items()}
        result |= _documents(model, write, documents, reference)
        report(f"{setting.name}: {result['recall']} KL {result['divergence']['mean']:.5f}")
        results.append(result)
    return results


def _recall(model: ReferenceModel, write: WriteKV, prompts: Sequence[Reading]) -> dict[str, float]:
    shares = [right_answers(reading, log_probabilities(model, reading, write)) for reading in prompts]
    total = Share(sum(share.n_right for share in shares), sum(share.n for share in shares))
    low, high = total.interval
    return {"n_right": total.n_right, "n": total.n, "low": round(low, 5), "high": round(high, 5)}


def _documents(
    model: ReferenceModel, write: WriteKV, documents: Sequence[Reading], reference: Sequence[Tensor]
) -> dict[str, Any]:
    nll, answer_nll, divergence, answer_divergence, same = [], [], [], [], []
    for reading, expected in zip(documents, reference, strict=True):
        found = log_probabilities(model, reading, write)
        losses, kl = _nll(reading, found), _divergence(expected, found)
        nll.append(losses)
        answer_nll.append(losses[reading.answers])
        divergence.append(float(kl.mean()))
        answer_divergence.append(float(kl[reading.answers].mean()))
        same.append(found.argmax(-1) == expected.argmax(-1))
    return {
        "perplexity": float(torch.cat(nll).mean().exp()),
        "answer_perplexity": float(torch.cat(answer_nll).mean().exp()),
        "divergence": asdict(_Spread.of(divergence)),
        "answer_divergence": asdict(_Spread.of(answer_divergence)),
        "same_top": float(torch.cat(same).float().mean()),
    }


_PARTS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attn_output",),
    "layer": ("attn_output", "ffn_down"),
}


def ablations(model: ReferenceModel, documents: Sequence[Reading]) -> Iterator[dict[str, float]]:
    """Yield, per layer, the mean KL in nats per token when its attention, or all it adds, is left out."""
    expected = [log_probabilities(model, reading) for reading in documents]
    for layer in range(model.config.n_layer):
        row: dict[str, float] = {"layer": layer}
        for left_out, names in _PARTS.items():
            kept = [model.layers[name][layer].clone() for name in names]
            with torch.no_grad():
                for name in names:
                    model.layers[name][layer] = 0
            row[f"without_{left_out}"] = _Spread.of(
                [
                    float(_divergence(before, log_probabilities(model, reading)).mean())
                    for reading, before in zip(documents, expected, strict=True)
                ]
            ).mean
            with torch.no_grad():
                for name, values in zip(names, kept, strict=True):
                    model.layers[name][layer] = values
        yield row
