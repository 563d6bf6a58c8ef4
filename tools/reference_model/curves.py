"""How the reference model responds to its KV cache: one pass over held-out text for every cache setting.

Each setting reads the same prompts and documents of the test split, so differences between settings are
paired: of every question it is counted whether the f16 cache and the setting agree on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kvquant.errors import UsageError
from kvquant.policy import parse_policy
from kvquant.reference.tasks import Size, Split, held_out_documents
from kvquant.torch.writing import QuantizedKV
from reference_model.network import ReferenceModel, WriteKV, model_shape
from reference_model.scoring import (
    Reading,
    Share,
    answer_hits,
    log_probabilities,
    read,
    recall_readings,
)

BASELINE = "f16"

UNIFORM_TYPES = ("q8_0", "q5_0", "q4_0")
RESEARCH_TYPES = ("tq_mse_4b", "tq_mse_3b", "tq_mse_2b")
LONG_NAMES = (BASELINE, "q8_0", "q4_0", "q4_0 unrotated", "tq_mse_3b")
"""The settings tried on long prompts, where each takes its time."""


@dataclass(frozen=True)
class Setting:
    """One way to keep the cache: a policy, and whether llama.cpp's rotation is on."""

    name: str
    policy: str
    rotate: bool = True

    def writer(self, model: ReferenceModel) -> WriteKV:
        """Return the function that passes the K and V of ``model`` through this cache."""
        return QuantizedKV(parse_policy(self.policy).resolve(model_shape(model.config)), rotate=self.rotate)


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


@dataclass(frozen=True)
class RecallPoint:
    """A recall test: ``n_prompts`` prompts of ``n_tokens`` tokens with ``n_pairs`` pairs, each asked once."""

    n_pairs: int
    n_tokens: int
    n_prompts: int

    @staticmethod
    def parse(text: str) -> RecallPoint:
        """Return the point written as PAIRSxTOKENSxPROMPTS. Raises UsageError for anything else."""
        try:
            n_pairs, n_tokens, n_prompts = map(int, text.split("x"))
        except ValueError as error:
            raise UsageError(f"{text!r}: write PAIRSxTOKENSxPROMPTS, such as 32x1024x16") from error
        return RecallPoint(n_pairs, n_tokens, n_prompts)

    def __str__(self) -> str:
        return f"{self.n_pairs}x{self.n_tokens}x{self.n_prompts}"

    @property
    def label(self) -> str:
        """What tables, figures and records call it."""
        return f"{self.n_pairs} pairs, {self.n_tokens} tokens"


def draw_prompts(seed: int, points: Sequence[RecallPoint]) -> dict[str, Sequence[Reading]]:
    """Return the prompts of each point by its label, of the test split, asking for every pair."""
    return {
        point.label: recall_readings(seed, Split.TEST, point.n_pairs, point.n_tokens, point.n_prompts)
        for point in points
    }


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
    prompts: Mapping[str, Sequence[Reading]],
    documents: Sequence[Reading],
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return one JSON object per setting.

    recall: label of the prompts to {n_right, n, low, high (95 % Wilson interval), n_lost, n_gained}, the last
    two counting questions that only the f16 cache, and only this setting, answers. With documents also
    perplexity: over all their tokens; answer_perplexity: over those the text before decides. divergence: mean
    KL from an f16 cache in nats per token, answer_divergence over answers only, with standard errors over
    documents. same_top: share of positions with the f16 cache's first choice. ``report`` is told of each
    setting when it is done.
    """
    exact = Setting(BASELINE, f"*:{BASELINE}")
    baseline = exact.writer(model)
    expected = [log_probabilities(model, reading, baseline) for reading in documents]
    answered = {label: _hits(model, baseline, readings) for label, readings in prompts.items()}
    results = []
    for setting in settings:
        write = setting.writer(model)
        result: dict[str, Any] = {"name": setting.name, "policy": setting.policy, "rotate": setting.rotate}
        result["recall"] = {
            label: _recall(
                answered[label], answered[label] if setting == exact else _hits(model, write, readings)
            )
            for label, readings in prompts.items()
        }
        if documents:
            result |= _documents(model, write, documents, expected)
        report(f"{setting.name}: {result['recall']} KL {result.get('divergence')}")
        results.append(result)
    return results


def _hits(model: ReferenceModel, write: WriteKV, prompts: Sequence[Reading]) -> Tensor:
    """Return which questions of ``prompts`` are answered exactly, bool (n_questions,)."""
    return torch.cat([answer_hits(reading, log_probabilities(model, reading, write)) for reading in prompts])


def _recall(baseline: Tensor, hits: Tensor) -> dict[str, float]:
    low, high = Share(int(hits.sum()), len(hits)).interval
    return {
        "n_right": int(hits.sum()),
        "n": len(hits),
        "low": round(low, 5),
        "high": round(high, 5),
        "n_lost": int((baseline & ~hits).sum()),
        "n_gained": int((hits & ~baseline).sum()),
    }


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
