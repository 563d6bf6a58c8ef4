"""What the divergences of many tokens come to: means with intervals, quantiles, perplexities, by position."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from kvquant.evals.divergence import TokenDivergence
from kvquant.evals.statistics import bootstrap_blocks
from kvquant.results.comparison import Interval

LEAST_BLOCKS = 16
"""With fewer chunks each is cut into several blocks, and with fewer blocks there is no interval: drawing a
handful again and again says little about what else could have been drawn."""

LEAST_LENGTH = 8
"""Tokens that a part of a chunk has at least."""

N_BINS = 16

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """A share of tokens and its interval."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class PositionMean:
    """Mean KL of the tokens at positions ``first`` to ``last`` of their chunks, both included."""

    first: int
    last: int
    mean: float


@dataclass(frozen=True)
class DivergenceSummary:
    """KL divergence from the baseline in nats: mean, its interval, quantiles (linear interpolation), maximum.

    top1: tokens for which both caches hold the same token to be the most likely. delta_p_rms: root mean
    square of the change in probability of the token that follows. n_blocks: how many the intervals draw from.
    An interval is None where the blocks are too few or cannot show a spread.
    """

    n_tokens: int
    n_blocks: int
    mean: float
    interval: Interval | None
    median: float
    p90: float
    p99: float
    p999: float
    max: float
    top1: Share
    delta_p_rms: float
    ppl_baseline: float
    ppl_policy: float
    by_position: tuple[PositionMean, ...]


def summarize_divergence(tokens: Sequence[TokenDivergence]) -> DivergenceSummary | None:
    """Sum up scored tokens in the order in which they were measured; None for no tokens.

    Intervals are block bootstraps. Tokens of one chunk share a text and a cache, and resemble each other
    across all of it, so blocks are whole chunks, or parts of them when there are fewer than LEAST_BLOCKS.
    """
    if not tokens:
        return None
    kl = np.array([token.kl for token in tokens])
    same_top = np.array([token.same_top for token in tokens], dtype=np.float64)
    starts = block_starts(tokens)
    p50, p90, p99, p999 = (float(value) for value in np.quantile(kl, (0.5, 0.9, 0.99, 0.999)))
    return DivergenceSummary(
        n_tokens=len(tokens),
        n_blocks=len(starts),
        mean=float(kl.mean()),
        interval=_interval(kl, starts),
        median=p50,
        p90=p90,
        p99=p99,
        p999=p999,
        max=float(kl.max()),
        top1=Share(float(same_top.mean()), _interval(same_top, starts)),
        delta_p_rms=math.sqrt(math.fsum(token.delta_p**2 for token in tokens) / len(tokens)),
        ppl_baseline=_perplexity(token.nll_baseline for token in tokens),
        ppl_policy=_perplexity(token.nll_policy for token in tokens),
        by_position=tuple(_by_position(tokens)),
    )


def block_starts(tokens: Sequence[TokenDivergence]) -> list[int]:
    """Return the index of each block's first token: a block is a chunk, or one of equal parts of a chunk.

    Chunks are cut into as few parts as give LEAST_BLOCKS in all, or as many as there are when they do not.
    """
    lengths = [len(list(chunk)) for _, chunk in groupby(tokens, lambda token: (token.document, token.chunk))]
    most = max(1, max(lengths) // LEAST_LENGTH)
    for n_parts in range(1, most + 1):
        # A short chunk, such as the last one, has no room for as many.
        counts = [max(1, min(n_parts, length // LEAST_LENGTH)) for length in lengths]
        if sum(counts) >= LEAST_BLOCKS:
            break
    starts, first = [], 0
    for length, count in zip(lengths, counts, strict=True):
        starts += [first + part * length // count for part in range(count)]
        first += length
    return starts


def _interval(values: Float64Array, starts: Sequence[int]) -> Interval | None:
    if len(starts) < LEAST_BLOCKS:
        return None
    counts = np.diff([*starts, len(values)])
    return bootstrap_blocks(np.add.reduceat(values, starts).tolist(), counts.tolist())


def _perplexity(nll: Iterable[float]) -> float:
    values = list(nll)
    return math.exp(math.fsum(values) / len(values))


def _by_position(tokens: Sequence[TokenDivergence]) -> Iterator[PositionMean]:
    """At most N_BINS bins of equally many positions; those without a scored token are left out."""
    first = min(token.position for token in tokens)
    n_positions = max(token.position for token in tokens) + 1 - first
    width = math.ceil(n_positions / N_BINS)
    sums: dict[int, list[float]] = {}
    for token in tokens:
        sums.setdefault((token.position - first) // width, []).append(token.kl)
    for index, values in sorted(sums.items()):
        start = first + index * width
        last = min(start + width, first + n_positions) - 1
        yield PositionMean(start, last, math.fsum(values) / len(values))
