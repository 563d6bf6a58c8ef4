"""Hypothesis strategies for attention over a cache, edge cases by construction rather than by luck."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from attention_op import AttentionCase
from kvquant.formats.registry import OWN_TYPES, cache_format, get_format
from tested_types import TESTED_TYPES

TILE = 64
"""Cache rows that kernels take together; sizes around its multiples are drawn often."""

_FLOATS = ("f32", "f16", "bf16")
_HEAD_DIMS = (64, 80, 96, 128, 192, 256)

Float32Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.float16]


def random_values(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Float32Array:
    """Finite float32 values; the last axis is a head."""
    x = rng.standard_normal(shape).astype(np.float32)
    if kind == "zeros":
        x[rng.random(shape) < 0.5] = 0.0
        x[rng.random(shape) < 0.3] *= -0.0
    elif kind == "ties":
        x[...] = x[:, :1, :1]
    elif kind == "tiny":
        x *= np.float32(2.0**-130)
    elif kind == "large":
        x *= 200.0
    elif kind == "outliers":
        x[..., rng.integers(shape[-1])] *= 60.0
    return x


_KINDS = st.sampled_from(("normal", "normal", "zeros", "ties", "tiny", "large", "outliers"))


def random_mask(rng: np.random.Generator, shape: tuple[int, int, int, int], kind: str) -> Mask:
    """A mask, float16 (streams, heads, n_tokens, n_kv), of zeros and -inf; "biased" has other values too."""
    n_tokens, n_kv = shape[2:]
    mask = np.zeros(shape, np.float16)
    causal = np.arange(n_kv) > np.arange(n_tokens)[:, None] + n_kv - n_tokens
    if kind == "causal":
        mask[..., causal] = -np.inf
    elif kind == "padded":  # cells of the cache that are not used yet
        mask[..., causal] = -np.inf
        mask[..., int(rng.integers(1, n_kv + 1)) :] = -np.inf
    elif kind == "window":
        mask[..., causal] = -np.inf
        mask[..., : n_kv // 2] = -np.inf
    elif kind == "random":
        mask[rng.random(shape) < 0.5] = -np.inf
    elif kind == "tiles":
        dropped = rng.random((shape[0], 1, 1, (n_kv + TILE - 1) // TILE)) < 0.6
        mask[...] = np.where(np.repeat(dropped, TILE, axis=-1)[..., :n_kv], -np.inf, 0.0)
    elif kind == "slots":  # sequences in one cache: the prompt of each in one piece, what follows in turn
        prompts = np.sort(rng.integers(0, n_kv, n_tokens + 1))
        cells = np.arange(n_kv)
        turns = np.where(cells >= prompts[-1], cells % n_tokens, -1)
        tokens = np.arange(n_tokens)[:, None]
        own = (cells >= prompts[:-1, None]) & (cells < prompts[1:, None]) | (turns == tokens)
        mask[..., ~own] = -np.inf
    elif kind == "one each":
        mask[...] = -np.inf
        mask[..., rng.integers(n_kv)] = 0.0
    elif kind == "empty rows":
        mask[..., rng.random(n_tokens) < 0.6, :] = -np.inf
    elif kind == "nothing":
        mask[...] = -np.inf
    elif kind == "biased":
        mask[...] = -rng.integers(0, 30, shape)
        mask[rng.random(shape) < 0.3] = -np.inf
    return mask


_MASKS = st.sampled_from(
    (
        *("none", "causal", "causal", "padded", "window", "random"),
        *("tiles", "slots", "one each", "empty rows", "nothing", "biased"),
    )
)
_AROUND_TILES = st.builds(
    lambda n, off: max(1, n * TILE + off), st.integers(0, 12), st.sampled_from((-1, 0, 1, 7))
)
_DEPTHS = st.one_of(st.integers(1, 9), _AROUND_TILES, st.integers(1, 1100))
TOKENS = {"decode": (1, 1), "few": (2, 11), "prefill": (12, 70)}
"""Ranges of the number of query tokens."""


@st.composite
def cases(draw: st.DrawFn, k_type: str, tokens: str) -> AttentionCase:
    """Any case that llama.cpp could ask for, small enough for float64 NumPy."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    latent = rng.random() < 0.15
    v_type = k_type if latent else draw(st.sampled_from(TESTED_TYPES))
    if latent:
        head_dim_k, head_dim_v, n_head_kv = 576, 512, 1
    else:
        head_dim_k, head_dim_v = (_head_dim(draw, name) for name in (k_type, v_type))
        n_head_kv = draw(st.integers(1, 3))
    n_head = n_head_kv * draw(st.integers(1, 8))
    n_tokens, n_kv = draw(st.integers(*TOKENS[tokens])), draw(_DEPTHS)
    n_stream = draw(st.sampled_from((1, 1, 1, 2, 3)))
    n_rows = n_kv + draw(st.sampled_from((0, 0, 5)))

    def cache(type_name: str, width: int) -> npt.NDArray[np.uint8]:
        x = random_values(rng, (n_stream, n_rows, n_head_kv, width), draw(_KINDS))
        packed = cache_format(type_name).quantize(x)
        packed[:, n_kv:] = 0xFF  # nothing may come of rows past the end
        return packed

    q = random_values(rng, (n_stream, n_tokens, n_head, head_dim_k), draw(_KINDS))
    k = cache(k_type, head_dim_k)
    v = None if latent else cache(v_type, head_dim_v)
    kind = draw(_MASKS)
    mask_shape = (draw(st.sampled_from((1, n_stream))), draw(st.sampled_from((1, 1, n_head))), n_tokens, n_kv)
    mask = None if kind == "none" else random_mask(rng, mask_shape, kind)
    sinks = draw(st.one_of(st.none(), st.sampled_from((-60.0, 0.0, 60.0))))
    return AttentionCase(
        k_type,
        v_type,
        q,
        k,
        v,
        head_dim_v,
        n_kv,
        scale=draw(st.sampled_from((head_dim_k**-0.5, 1.0, 0.01))),
        mask=mask,
        sinks=None if sinks is None else (rng.standard_normal(n_head) + sinks).astype(np.float32),
        max_bias=0.0 if mask is None else draw(st.sampled_from((0.0, 0.0, 8.0))),
        softcap=draw(st.sampled_from((0.0, 0.0, 0.0, 30.0))),
    )


def _head_dim(draw: st.DrawFn, type_name: str) -> int:
    """A width that the type's blocks divide; types without blocks also get widths that no vector divides."""
    widths = [width for width in _HEAD_DIMS if width % (64 if type_name in OWN_TYPES else 32) == 0]
    if type_name in _FLOATS:
        widths = [*_HEAD_DIMS, 8, 40, 100, 101]
    width = draw(st.sampled_from(widths))
    get_format(type_name).check_width(width)
    return width


def plain_case(k_type: str, v_type: str, n_tokens: int, n_kv: int = 200) -> AttentionCase:
    """A causal case of ordinary values: 8 heads of width 128 that share 2 KV heads."""
    rng = np.random.default_rng(n_tokens)
    q = random_values(rng, (1, n_tokens, 8, 128), "normal")
    k, v = (
        cache_format(name).quantize(random_values(rng, (1, n_kv, 2, 128), "normal"))
        for name in (k_type, v_type)
    )
    mask = random_mask(rng, (1, 1, n_tokens, n_kv), "causal")
    return AttentionCase(k_type, v_type, q, k, v, 128, n_kv, 128**-0.5, mask)
