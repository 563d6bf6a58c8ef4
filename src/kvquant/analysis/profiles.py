"""Synthetic keys and values with the statistics that published measurements of real models report.

A profile is numbers only. Every layer and KV head draws from its own seeded stream, so looking at fewer heads
or layers never changes the data of the others. How channel pair p of token t's key is built, before RoPE:

    size_t · gain_p · ( sqrt(2·share)·(cos φ_p, sin φ_p)  +  sqrt(1 − share)·(z₁, z₂) )       z ~ N(0, 1)

with gain_p about 1, larger for a few outlier pairs and far larger for one massive pair; share is the part of
the energy that does not depend on the token (a bias), large in outlier and massive pairs. RoPE then turns
each pair (i and i + head_dim/2) by its position, so a constant pair becomes the slow wave seen in real keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kvquant.analysis.metrics import Float64Array
from kvquant.analysis.sample import LayerSample, query_positions, synthetic_queries
from kvquant.errors import UsageError
from kvquant.formats.base import Float32Array


@dataclass(frozen=True)
class Profile:
    """Statistics of K and V to imitate. Norms are Euclidean norms of one head's vector, averaged over tokens.

    k_norm, v_norm: mean over all layers. norm_first, norm_last: K norm of the first and the last layer over
    that of a middle one.
    outliers_first, outliers: share of channels with RMS above 3x their head's median, layer 0 and others.
    massive, massive_ends: gain of the one massive pair in middle layers and in the first and last (0: none).
    massive_heads: share of KV heads that have a massive pair.
    offset_share: energy share of the constant part in ordinary channels.
    token_spread: 99th over 1st percentile of token norms.
    sink_mass: attention given to token 0 on average, from layer 2 on.
    rope_base: base of RoPE's angles, 0 for models without RoPE.
    unit_vectors: every K and V vector has norm 1 and nothing else is imitated.
    """

    name: str
    description: str
    k_norm: float = 1.0
    v_norm: float = 1.0
    norm_first: float = 1.0
    norm_last: float = 1.0
    outliers_first: float = 0.0
    outliers: float = 0.0
    massive: float = 0.0
    massive_ends: float = 0.0
    massive_heads: float = 0.0
    offset_share: float = 0.0
    token_spread: float = 1.0
    sink_mass: float = 0.0
    rope_base: float = 0.0
    unit_vectors: bool = False


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "typical",
            "outlier channels, norm spread and attention sink as measured in several models",
            # The geometric means of the three measured models below.
            k_norm=82.0,
            v_norm=2.6,
            norm_first=2.5,
            norm_last=4.0,
            outliers_first=0.20,
            outliers=0.05,
            massive=10.0,
            massive_ends=40.0,
            massive_heads=0.25,
            offset_share=0.2,
            token_spread=3.0,
            sink_mass=0.3,
            rope_base=500_000.0,
        ),
        Profile(
            "qwen2.5-3b",
            "the norms of Qwen2.5-3B (K 172, V 3.3), large key biases at both ends",
            k_norm=172.0,
            v_norm=3.3,
            norm_first=2.5,
            norm_last=4.0,
            outliers_first=0.20,
            outliers=0.06,
            massive=12.0,
            massive_ends=50.0,
            massive_heads=0.25,
            offset_share=0.3,
            token_spread=3.0,
            sink_mass=0.3,
            rope_base=1_000_000.0,
        ),
        Profile(
            "qwen2.5-7b",
            "the norms of Qwen2.5-7B (K 274, V 2.6), very large key biases at both ends",
            k_norm=274.0,
            v_norm=2.6,
            norm_first=2.5,
            norm_last=4.0,
            outliers_first=0.20,
            outliers=0.06,
            massive=30.0,
            massive_ends=120.0,
            massive_heads=0.25,
            offset_share=0.3,
            token_spread=3.0,
            sink_mass=0.3,
            rope_base=1_000_000.0,
        ),
        Profile(
            "gpt2",
            "the norms of GPT-2 (K 11.8, V 2.0), no RoPE and no massive channels",
            k_norm=11.8,
            v_norm=2.0,
            outliers_first=0.20,
            outliers=0.04,
            offset_share=0.3,
            token_spread=2.0,
            sink_mass=0.3,
        ),
        Profile(
            "unit-gaussian",
            "independent unit vectors, the data behind published TurboQuant figures; no model is so",
            unit_vectors=True,
        ),
    )
}

_OUTLIER_GAINS = (4.5, 7.5)
_OUTLIER_SHARE = 0.7
_MASSIVE_SHARE = 0.98
_GAIN_SIGMA = 0.25
_V_GAIN_SIGMA = 0.1
_SINK_V_FACTOR = 0.1
_FIRST_SINK_LAYER = 2
_NORMAL_99 = 2.3263
_BISECTIONS = 24


def get_profile(name: str) -> Profile:
    """Return the profile called ``name``. Raises UsageError naming the known ones."""
    try:
        return PROFILES[name]
    except KeyError:
        raise UsageError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}") from None


@dataclass(frozen=True)
class LayerPlan:
    """The layer to draw: its place in the model, its widths, and how much of it to draw.

    layer, n_layer: global index and number of layers. heads: which of the n_head_kv KV heads to draw.
    group: query heads per KV head. window: tokens a query sees at most, 0 for all.
    """

    layer: int
    n_layer: int
    n_head_kv: int
    heads: tuple[int, ...]
    group: int
    head_dim_k: int
    head_dim_v: int
    n_tokens: int
    n_query: int
    window: int = 0

    @property
    def logit_scale(self) -> float:
        """What q·k is multiplied by, 1 / sqrt(head_dim_k)."""
        return float(self.head_dim_k**-0.5)

    @property
    def is_end(self) -> bool:
        """Whether this is the model's first or last layer."""
        return self.layer in (0, self.n_layer - 1)


def draw_layer(profile: Profile, plan: LayerPlan, seed: int) -> LayerSample:
    """Return the keys, values and queries of one layer; the same arguments give the same numbers."""
    size = _token_sizes(profile, plan, seed)
    massive = _massive_heads(profile, plan, seed)
    channels = [_draw_channels(profile, plan, head, head in massive, seed) for head in range(plan.n_head_kv)]
    mean_size = float(np.mean([head.norm for head in channels]))
    at = query_positions(plan.n_tokens, plan.n_query)
    keys, values, queries = [], [], []
    for head in plan.heads:
        norm = profile.k_norm * _layer_factor(profile, plan) * channels[head].norm / mean_size
        k = _keys(profile, plan, head, channels[head], size, norm, seed)
        rng = np.random.default_rng((seed, plan.layer, head, 2))
        q = synthetic_queries(k, len(at), plan.group, rng, plan.logit_scale)
        keys.append(_with_sink(profile, plan, k, q))
        values.append(_values(profile, plan, head, size, seed))
        queries.append(q)
    return LayerSample(
        k=np.stack(keys, axis=1),
        v=np.stack(values, axis=1),
        q=np.concatenate(queries, axis=1),
        positions=np.arange(plan.n_tokens, dtype=np.int64),
        query_positions=at,
        logit_scale=plan.logit_scale,
        window=plan.window,
    )


@dataclass(frozen=True, eq=False)
class _Channels:
    """The channel pairs of one KV head, arrays (head_dim / 2,): gain, constant share of energy, its phase."""

    gain: Float64Array
    share: Float64Array
    phase: Float64Array

    @property
    def norm(self) -> float:
        """Norm of a key of this head, up to a factor that all heads share."""
        return float(np.sqrt(np.sum(np.square(self.gain))))


def _massive_heads(profile: Profile, plan: LayerPlan, seed: int) -> set[int]:
    """The heads of this layer that have a massive pair, at least one if the profile knows such pairs."""
    if not (profile.massive_ends if plan.is_end else profile.massive):
        return set()
    n_massive = max(1, round(profile.massive_heads * plan.n_head_kv))
    order = np.random.default_rng((seed, plan.layer, 0, 4)).permutation(plan.n_head_kv)
    return set(order[:n_massive].tolist())


def _draw_channels(profile: Profile, plan: LayerPlan, head: int, massive: bool, seed: int) -> _Channels:
    rng = np.random.default_rng((seed, plan.layer, head, 3))
    half = plan.head_dim_k // 2
    gain = np.exp(_GAIN_SIGMA * np.clip(rng.standard_normal(half), -3, 3))
    share = np.full(half, profile.offset_share)
    # Both channels get a fair part of the constant, so that an outlier pair is two outlier channels.
    phase = rng.uniform(np.pi / 6, np.pi / 3, half) + rng.integers(0, 4, half) * (np.pi / 2)
    fraction = profile.outliers_first if plan.layer == 0 else profile.outliers
    # Measured outliers sit in pairs that turn slowly, so later pairs are likelier.
    slowness = np.arange(1.0, half + 1)
    outliers = rng.choice(half, size=round(fraction * half), replace=False, p=slowness / slowness.sum())
    gain[outliers] = rng.uniform(*_OUTLIER_GAINS, size=len(outliers))
    share[outliers] = _OUTLIER_SHARE
    if massive and len(outliers):
        slowest = outliers.max()
        gain[slowest] = profile.massive_ends if plan.is_end else profile.massive
        share[slowest] = _MASSIVE_SHARE
    return _Channels(gain, share, phase)


def _token_sizes(profile: Profile, plan: LayerPlan, seed: int) -> Float64Array:
    """Relative norm of every token's key, shared by the heads of a layer: log-normal."""
    sigma = np.log(profile.token_spread) / (2 * _NORMAL_99)
    return np.asarray(
        np.exp(sigma * np.random.default_rng((seed, plan.layer)).standard_normal(plan.n_tokens))
    )


def _keys(
    profile: Profile,
    plan: LayerPlan,
    head: int,
    channels: _Channels,
    size: Float64Array,
    norm: float,
    seed: int,
) -> Float32Array:
    """Keys (n_tokens, head_dim_k) of one head, without an attention sink."""
    rng = np.random.default_rng((seed, plan.layer, head, 0))
    if profile.unit_vectors:
        return _unit(rng.standard_normal((plan.n_tokens, plan.head_dim_k)))
    half = plan.head_dim_k // 2
    pairs = rng.standard_normal((plan.n_tokens, 2, half))
    pairs *= np.sqrt(1 - channels.share)
    pairs += np.sqrt(2 * channels.share) * np.stack((np.cos(channels.phase), np.sin(channels.phase)))
    pairs *= channels.gain * size[:, None, None]
    if profile.rope_base:
        pairs = _rope(pairs, profile.rope_base)
    k = np.zeros((plan.n_tokens, plan.head_dim_k))
    k[:, : 2 * half] = pairs.reshape(plan.n_tokens, 2 * half)
    return _scaled(k, norm)


@lru_cache(maxsize=4)
def _rope_turns(n_tokens: int, half: int, base: float) -> tuple[Float64Array, Float64Array]:
    """Cosine and sine of RoPE's angles t · base^(−i / half), each (n_tokens, half)."""
    angle = np.outer(np.arange(n_tokens), base ** (-np.arange(half) / half))
    return np.cos(angle), np.sin(angle)


def _rope(pairs: Float64Array, base: float) -> Float64Array:
    """Turn every pair of (n_tokens, 2, half) by the angle of its token's position."""
    cos, sin = _rope_turns(pairs.shape[0], pairs.shape[2], base)
    first, second = pairs[:, 0], pairs[:, 1]
    return np.stack((first * cos - second * sin, first * sin + second * cos), axis=1)


def _values(profile: Profile, plan: LayerPlan, head: int, size: Float64Array, seed: int) -> Float32Array:
    """Values (n_tokens, head_dim_v) of one head."""
    rng = np.random.default_rng((seed, plan.layer, head, 1))
    v = rng.standard_normal((plan.n_tokens, plan.head_dim_v))
    if profile.unit_vectors:
        return _unit(v)
    v *= np.exp(_V_GAIN_SIGMA * rng.standard_normal(plan.head_dim_v))
    # Half the spread of the keys, on a logarithmic scale: V stays close to Gaussian.
    v *= np.sqrt(size)[:, None]
    if profile.sink_mass:
        v[0] *= _SINK_V_FACTOR
    return _scaled(v, profile.v_norm)


def _with_sink(profile: Profile, plan: LayerPlan, k: Float32Array, q: Float32Array) -> Float32Array:
    """Move key 0 along the queries' common direction until it gets ``sink_mass`` of their attention.

    k (n_tokens, head_dim), q (n_query, group, head_dim).
    """
    if not profile.sink_mass or plan.layer < _FIRST_SINK_LAYER or plan.n_tokens < 2:
        return k
    queries = q.reshape(-1, plan.head_dim_k).astype(np.float64)
    logits = queries @ k.astype(np.float64).T * plan.logit_scale
    behind = np.logaddexp.reduce(logits[:, 1:], axis=1) - logits[:, 0]
    common = queries.mean(axis=0)
    per_step = queries @ common * plan.logit_scale

    def mass(step: float) -> float:
        return float(np.mean(np.exp(-np.logaddexp(0.0, behind - step * per_step))))

    # Bisection; the upper end puts nearly all queries' attention on token 0.
    low, high = 0.0, 2 * float(np.max(behind)) / float(np.mean(per_step))
    if mass(low) >= profile.sink_mass or mass(high) <= profile.sink_mass:
        return k
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < profile.sink_mass else (low, middle)
    sinking = k.copy()
    sinking[0] += high * common
    return sinking


def _layer_factor(profile: Profile, plan: LayerPlan) -> float:
    """K norm of this layer over the mean of all layers."""
    factors = np.ones(plan.n_layer)
    factors[-1] = profile.norm_last
    factors[0] = profile.norm_first
    return float(factors[plan.layer] / factors.mean())


def _unit(x: Float64Array) -> Float32Array:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype=np.float32)


def _scaled(x: Float64Array, norm: float) -> Float32Array:
    """Scale ``x`` so that its vectors have mean norm ``norm``."""
    return np.asarray(x * (norm / np.linalg.norm(x, axis=-1).mean()), dtype=np.float32)
