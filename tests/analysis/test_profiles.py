"""Profiles have the statistics they claim, and the statistics measure what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvquant.analysis import PROFILES, LayerSample, get_profile
from kvquant.analysis.metrics import (
    attention_logits,
    kurtosis,
    log_softmax,
    mean_norm,
    offset_share,
    outlier_fraction,
    token_norm_spread,
)
from kvquant.analysis.profiles import LayerPlan, draw_layer
from kvquant.analysis.sample import LOGIT_STD, query_positions
from kvquant.errors import UsageError
from kvquant.formats.hadamard import rotate

N_LAYER, N_HEAD_KV, WIDTH = 32, 8, 128
PLAN = LayerPlan(
    layer=0,
    n_layer=N_LAYER,
    n_head_kv=N_HEAD_KV,
    heads=tuple(range(N_HEAD_KV)),
    group=1,
    head_dim_k=WIDTH,
    head_dim_v=WIDTH,
    n_tokens=256,
    n_query=16,
)
REAL = [name for name in PROFILES if name != "unit-gaussian"]


def draw(name: str, layer: int, seed: int = 7) -> LayerSample:
    return draw_layer(get_profile(name), replace(PLAN, layer=layer), seed)


@pytest.fixture(scope="module", params=REAL)
def model(request: pytest.FixtureRequest) -> tuple[str, list[LayerSample]]:
    """All layers of a 32-layer model under one profile."""
    return request.param, [draw(request.param, layer) for layer in range(N_LAYER)]


def test_norms_are_the_profiles(model: tuple[str, list[LayerSample]]) -> None:
    name, layers = model
    profile = get_profile(name)
    assert np.mean([mean_norm(layer.k) for layer in layers]) == pytest.approx(profile.k_norm, rel=0.02)
    assert np.mean([mean_norm(layer.v) for layer in layers]) == pytest.approx(profile.v_norm, rel=0.02)
    middle = mean_norm(layers[N_LAYER // 2].k)
    assert mean_norm(layers[0].k) / middle == pytest.approx(profile.norm_first, rel=0.05)
    assert mean_norm(layers[-1].k) / middle == pytest.approx(profile.norm_last, rel=0.05)


def test_outlier_channels_are_in_k_and_not_in_v(model: tuple[str, list[LayerSample]]) -> None:
    """About 20 % of K's channels in layer 0, 4 to 6 % in the others, none of V's."""
    name, layers = model
    profile = get_profile(name)
    assert outlier_fraction(layers[0].k) == pytest.approx(profile.outliers_first, abs=0.02)
    assert 0.04 <= np.mean([outlier_fraction(layer.k) for layer in layers[1:]]) <= 0.065
    assert max(outlier_fraction(layer.v) for layer in layers) == 0


def test_token_norms_vary_two_to_fivefold(model: tuple[str, list[LayerSample]]) -> None:
    _, layers = model
    assert 2 <= np.mean([token_norm_spread(layer.k) for layer in layers]) <= 5


def test_v_is_close_to_gaussian(model: tuple[str, list[LayerSample]]) -> None:
    _, layers = model
    assert 2.9 <= np.mean([kurtosis(layer.v) for layer in layers]) <= 3.6


def test_rotation_makes_k_gaussian(model: tuple[str, list[LayerSample]]) -> None:
    """Kurtosis of K over the whole model, as stored, and of its unit vectors after the Hadamard rotation."""
    name, layers = model
    k = np.stack([layer.k for layer in layers])
    rotated = rotate(k, WIDTH)
    rotated /= np.linalg.norm(rotated, axis=-1, keepdims=True)
    assert 2.5 <= kurtosis(rotated) <= 3.0
    if name == "gpt2":
        assert 10 <= kurtosis(k) <= 100
    else:
        assert kurtosis(k) > 450
    if name in ("typical", "qwen2.5-3b"):
        assert kurtosis(k) < 1800


def test_sink_takes_attention_and_has_a_small_value(model: tuple[str, list[LayerSample]]) -> None:
    name, layers = model
    attention_to_first = [
        np.exp(log_softmax(attention_logits(s.q, s.k, s.logit_scale), s.visible))[..., 0].mean()
        for s in layers
    ]
    assert np.mean(attention_to_first[2:]) == pytest.approx(get_profile(name).sink_mass, abs=0.08)
    assert max(attention_to_first[:2]) < 0.05
    norms = np.linalg.norm(layers[4].v, axis=-1)
    assert norms[0].mean() < 0.3 * norms[1:].mean()


def test_logits_have_the_stated_spread(model: tuple[str, list[LayerSample]]) -> None:
    _, layers = model
    for layer in (layers[0], layers[9]):
        logits = attention_logits(layer.q, layer.k, layer.logit_scale)[..., 1:]
        assert np.sqrt(np.var(logits, axis=-1).mean()) == pytest.approx(LOGIT_STD, rel=0.05)


def test_outliers_come_in_rope_pairs_with_a_constant_part() -> None:
    layer = draw("typical", 5)
    rms = np.sqrt(np.mean(np.square(layer.k, dtype=np.float64), axis=0))
    outlying = rms > 3 * np.median(rms, axis=-1, keepdims=True)
    first, second = outlying[:, : WIDTH // 2], outlying[:, WIDTH // 2 :]
    assert (first & second).sum() >= 0.8 * (first | second).sum()
    assert offset_share(layer.k) > 3 * offset_share(layer.v)


def test_unit_gaussian_is_unit_vectors() -> None:
    layer = draw("unit-gaussian", 3)
    for x in (layer.k, layer.v):
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-6)
        assert kurtosis(x) == pytest.approx(3 * WIDTH / (WIDTH + 2), rel=0.03)
        assert outlier_fraction(x) == 0


def test_the_same_arguments_give_the_same_numbers_and_another_seed_does_not() -> None:
    one, again, other = draw("typical", 4), draw("typical", 4), draw("typical", 4, seed=8)
    for name in ("k", "v", "q"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name))


def test_drawing_fewer_heads_does_not_change_the_others() -> None:
    some = draw_layer(get_profile("typical"), replace(PLAN, layer=6, heads=(1, 5)), 7)
    everything = draw("typical", 6)
    np.testing.assert_array_equal(some.k, everything.k[:, [1, 5]])
    np.testing.assert_array_equal(some.v, everything.v[:, [1, 5]])
    np.testing.assert_array_equal(some.q, everything.q[:, [1, 5]])


@pytest.mark.parametrize("width", [2, 7, 64, 80, 256])
def test_any_head_width_can_be_drawn(width: int) -> None:
    plan = replace(PLAN, head_dim_k=width, head_dim_v=width + 1, n_tokens=8, layer=3)
    layer = draw_layer(get_profile("typical"), plan, 0)
    assert layer.k.shape == (8, N_HEAD_KV, width) and layer.v.shape == (8, N_HEAD_KV, width + 1)


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 100])
def test_query_positions_lie_in_the_second_half(n_tokens: int) -> None:
    at = query_positions(n_tokens, 16)
    assert len(at) == min(16, n_tokens - n_tokens // 2)
    assert at[0] >= n_tokens // 2 and at[-1] < n_tokens
    assert len(set(at.tolist())) == len(at)
    assert (
        draw_layer(get_profile("typical"), replace(PLAN, n_tokens=n_tokens, layer=2), 0).k.shape[0]
        == n_tokens
    )


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown profile 'real'; known: typical, .*unit-gaussian"):
        get_profile("real")


def test_statistics_on_known_arrays() -> None:
    x = np.zeros((4, 1, 8), np.float32)
    x[:, 0, :] = 1
    x[:, 0, 3] = 10
    assert outlier_fraction(x) == 1 / 8
    assert offset_share(x) == pytest.approx(1)
    assert mean_norm(x) == pytest.approx(np.sqrt(107))
    assert token_norm_spread(x) == pytest.approx(1)
    assert kurtosis(np.array([1.0, -1.0])) == 1
    assert kurtosis(np.array([0.0, 0.0, 0.0, 2.0])) == 4
    alternating = np.array([1.0, -1.0], np.float32).reshape(2, 1, 1)
    assert offset_share(alternating) == 0
