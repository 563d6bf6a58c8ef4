"""Keys and queries as models make them, and as none should: dead channels, huge biases, one token, low
rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """k (n_tokens, n_head_kv, head_dim), q (n_query, n_head, head_dim), float32."""

    k: Floats
    q: Floats


@st.composite
def samples(draw: Any, widths: tuple[int, ...] = (1, 2, 8, 16)) -> Sample:
    """Draw K and Q of one layer."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width, n_head_kv, group = draw(st.sampled_from(widths)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n_tokens, n_query = draw(st.sampled_from((1, 2, 5, 64))), draw(st.sampled_from((1, 3, 40)))
    rank = draw(st.integers(1, width))
    k = _mixed(rng, n_tokens, n_head_kv, width, rank)
    q = _mixed(rng, n_query, n_head_kv * group, width, width)
    k += draw(st.sampled_from((0.0, 1.0, 400.0))) * rng.standard_normal((n_head_kv, width))
    for array in (k, q):
        dead = draw(st.sampled_from(("none", "one channel", "all")))
        if dead != "none":
            array[..., : 1 if dead == "one channel" else width] = 0.0
    scale = draw(st.sampled_from((1e-6, 1.0, 1e3)))
    return Sample((k * scale).astype(np.float32), q.astype(np.float32))


def _mixed(rng: np.random.Generator, n: int, n_head: int, width: int, rank: int) -> npt.NDArray[np.float64]:
    energies = np.exp(1.5 * rng.standard_normal((n_head, 1, rank)))
    mixing = rng.standard_normal((n_head, rank, width))
    return np.asarray(((rng.standard_normal((n_head, n, rank)) * energies) @ mixing).transpose(1, 0, 2))
