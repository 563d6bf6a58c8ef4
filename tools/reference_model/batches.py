"""Documents as token rows of one length, with a mark on every token that the text before it decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvquant.reference.tasks import Document, Size, Split, draw_document
from kvquant.reference.tokenizer import encode, token_ends


@dataclass(frozen=True)
class Batch:
    """Rows of tokens.

    tokens: int64 (n_rows, n_tokens + 1); a model reads all but the last and predicts all but the first.
    answers: bool (n_rows, n_tokens), whether the predicted token is part of an answer.
    kinds: the task of each row.
    """

    tokens: npt.NDArray[np.int64]
    answers: npt.NDArray[np.bool_]
    kinds: tuple[str, ...]


def answer_mask(document: Document) -> npt.NDArray[np.bool_]:
    """Return, for each token of ``document``, whether it ends inside an answer."""
    ends = np.array(token_ends(document.text))
    mask = np.zeros(len(ends), dtype=bool)
    for start, end in document.answers:
        mask |= (ends > start) & (ends <= end)
    return mask


def draw_batch(
    seed: tuple[int, ...],
    split: Split,
    weights: Mapping[str, float],
    n_rows: int,
    size: Size,
) -> Batch:
    """Return ``n_rows`` documents, each cut to ``size.n_tokens`` + 1 tokens, the same for one ``seed``."""
    n_tokens = size.n_tokens
    rng = np.random.default_rng(seed)
    tokens = np.empty((n_rows, n_tokens + 1), dtype=np.int64)
    answers = np.empty((n_rows, n_tokens), dtype=bool)
    kinds = []
    for row in range(n_rows):
        document = draw_document(rng, split, weights, replace(size, n_tokens=n_tokens + 1))
        tokens[row] = encode(document.text)[: n_tokens + 1]
        answers[row] = answer_mask(document)[1 : n_tokens + 1]
        kinds.append(document.kind)
    return Batch(tokens, answers, tuple(kinds))
