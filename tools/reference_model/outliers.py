"""Outlier channels in K, put there on purpose.

K of trained models has a few channels many times larger than the rest, in the pairs that RoPE turns slowly.
That is what makes low-bit K hard and llama.cpp's rotation useful (docs/analysis.md has figures). A model as
small and as briefly trained as this one grows none. But K is normed before RoPE, so the weights of that norm
can be multiplied where those of Q's norm are divided: with the same power of two for both channels of a RoPE
pair, every product of a query and a key stays the same to the last bit, and only what a cache has to store
changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reference_model.network import ReferenceModel

_FIRST_SLOW_SHARE = 0.5


@dataclass(frozen=True)
class KeyOutliers:
    """How many RoPE pairs of each layer become outliers, and how large, drawn per layer from these.

    n_pairs: the least and the most pairs. gains: powers of two.
    """

    n_pairs: tuple[int, int] = (1, 4)
    gains: Sequence[float] = (4.0, 8.0, 16.0)


@torch.no_grad()
def add_key_outliers(model: ReferenceModel, seed: int, outliers: KeyOutliers = KeyOutliers()) -> None:
    """Multiply pairs of K's channels, and divide Q's, by gains drawn from ``outliers``; one gain per layer.

    The pairs come from the slower half, as in the models measured.
    """
    generator = torch.Generator().manual_seed(seed)
    half = model.config.head_dim // 2
    first = round(half * _FIRST_SLOW_SHARE)
    fewest, most = outliers.n_pairs
    for layer in range(model.config.n_layer):
        n_pairs = int(torch.randint(fewest, most + 1, (), generator=generator))
        gain = outliers.gains[int(torch.randint(len(outliers.gains), (), generator=generator))]
        pairs = first + torch.randperm(half - first, generator=generator)[:n_pairs]
        channels = torch.cat((pairs, pairs + half))
        model.layers["attn_k_norm"][layer, channels] *= gain
        model.layers["attn_q_norm"][layer, channels] /= gain
