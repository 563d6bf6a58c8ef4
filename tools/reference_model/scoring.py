"""How much of a document a model gets right, with its K and V as they are or as a format keeps them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kvquant.reference.tasks import Document, Split, recall_prompt
from kvquant.reference.tokenizer import encode
from reference_model.batches import answer_mask
from reference_model.network import ReferenceModel, WriteKV

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """How many of ``n`` independent trials succeeded."""

    n_right: int
    n: int

    @property
    def rate(self) -> float:
        """Return the share of successes, NaN without trials."""
        return self.n_right / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson score interval of the rate."""
        if self.n == 0:
            return (0.0, 1.0)
        spread = _Z95**2 / self.n
        centre = (self.rate + spread / 2) / (1 + spread)
        half = math.sqrt(spread * (self.rate * (1 - self.rate) + spread / 4)) / (1 + spread)
        return (max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Reading:
    """One document as a model reads it.

    tokens: int64 (n_tokens,). answers: bool (n_tokens - 1,), whether token i + 1 is part of an answer.
    answer_ids: int64 (n_tokens - 1,), which answer of the document token i + 1 belongs to, -1 for none.
    """

    tokens: Tensor
    answers: Tensor
    answer_ids: Tensor


def read(document: Document) -> Reading:
    """Return ``document`` as tokens, with its answers marked one by one."""
    mask = answer_mask(document)
    begins = mask & ~np.concatenate(([False], mask[:-1]))
    ids = np.where(mask, np.cumsum(begins) - 1, -1)
    return Reading(torch.tensor(encode(document.text)), torch.from_numpy(mask[1:]), torch.from_numpy(ids[1:]))


@torch.inference_mode()
def log_probabilities(model: ReferenceModel, reading: Reading, write_kv: WriteKV | None = None) -> Tensor:
    """Return the log-probabilities of tokens 1, 2, ... of ``reading``, float32 (n_tokens - 1, n_vocab)."""
    return functional.log_softmax(model(reading.tokens[None, :-1], write_kv)[0], dim=-1)


def answer_hits(reading: Reading, log_probability: Tensor) -> Tensor:
    """Return whether every token of an answer is the model's first choice, given the true text before it.

    bool (n_answers,), in the order of the answers.
    """
    missed = (log_probability.argmax(-1) != reading.tokens[1:]) & reading.answers
    hits = torch.ones(int(reading.answer_ids.max()) + 1, dtype=torch.bool)
    hits[reading.answer_ids[missed]] = False
    return hits


def right_answers(reading: Reading, log_probability: Tensor) -> Share:
    """Count the answers that `answer_hits` finds right."""
    hits = answer_hits(reading, log_probability)
    return Share(int(hits.sum()), len(hits))


def recall_readings(
    seed: int, split: Split, n_pairs: int, n_tokens: int, n_prompts: int, n_asked: int | None = None
) -> list[Reading]:
    """Return ``n_prompts`` recall prompts of ``split``, each asking ``n_asked`` (None: all) of its pairs."""
    asked = n_pairs if n_asked is None else n_asked
    return [
        read(recall_prompt(np.random.default_rng([seed, index]), split, n_pairs, n_tokens, asked))
        for index in range(n_prompts)
    ]


def recall_score(
    model: ReferenceModel, readings: Sequence[Reading], write_kv: WriteKV | None = None
) -> Share:
    """Return how many of the pairs asked in ``readings`` the model recalls exactly."""
    shares = [right_answers(reading, log_probabilities(model, reading, write_kv)) for reading in readings]
    return Share(sum(share.n_right for share in shares), sum(share.n for share in shares))
