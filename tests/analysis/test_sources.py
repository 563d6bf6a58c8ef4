"""Profiles and captures as sources: what they give, what they say about themselves, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.strategies import HYBRID, SMALL
from kvquant.analysis import Sampling, open_source
from kvquant.analysis.sources import DEFAULT_SHAPE, capture_shape
from kvquant.errors import CaptureError, ShapeError, UsageError
from kvquant.model.architectures import read_shape
from kvquant.model.capture import KVCapture, LayerAxes, LayerCapture, save_capture
from kvquant.model.presets import load_preset
from kvquant.model.shape import LayerShape, ModelShape


def small_capture(queries: bool = True, dtype: type = np.float32) -> KVCapture:
    """A capture of SMALL's layers, 12 tokens from position 5, queries at the last three."""
    rng = np.random.default_rng(1)
    axes = [LayerAxes(i, 4, 2, 64, 64, logit_scale=0.125) for i in range(4)]
    return KVCapture(
        model="small",
        arch="llama",
        n_layer=4,
        source="test",
        positions=np.arange(5, 17, dtype=np.int32),
        layers=tuple(
            LayerCapture(
                axis,
                k=rng.standard_normal((12, 2, 64)).astype(dtype),
                v=rng.standard_normal((12, 2, 64)).astype(dtype),
                q=rng.standard_normal((3, 4, 64)).astype(dtype) if queries else None,
            )
            for axis in axes
        ),
        queries="captured" if queries else "none",
        q_positions=np.array([14, 15, 16], dtype=np.int32) if queries else None,
    )


def test_the_default_is_the_capture_of_the_reference_model_with_its_own_queries() -> None:
    source = open_source()
    assert (source.info.kind, source.info.name, source.info.seed) == ("capture", "reference", None)
    assert (source.info.queries, source.info.n_query, source.info.n_head_kv) == ("captured", 16, "2 of 2")
    assert source.shape.kv_layers == tuple(range(32)) and source.layer(31).k.shape[1:] == (2, 64)
    again = open_source(capture="reference")
    np.testing.assert_array_equal(again.layer(4).q, source.layer(4).q)


def test_the_shipped_capture_is_of_the_shape_of_the_shipped_model() -> None:
    path = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"
    assert open_source(read_shape(path), capture="reference").shape.n_layer == 32


def test_a_file_called_like_a_shipped_capture_is_named_by_its_path(tmp_path: Path) -> None:
    save_capture(small_capture(), tmp_path / "reference")
    assert open_source(capture=tmp_path / "reference").shape.name == "small"


def test_a_shape_alone_gets_the_typical_profile_and_a_profile_alone_a_32_layer_model() -> None:
    alone = open_source(load_preset(DEFAULT_SHAPE))
    assert (alone.info.kind, alone.info.name, alone.info.seed) == ("profile", "typical", 0)
    source = open_source(profile="typical")
    assert source.shape == load_preset(DEFAULT_SHAPE) and source.shape.n_layer == 32
    assert (source.info.n_tokens, source.info.n_head_kv, source.info.n_head) == (512, "2 of 8", "8 of 32")


def test_a_profile_named_after_a_model_brings_its_shape() -> None:
    assert open_source(profile="qwen2.5-7b").shape == load_preset("qwen2.5-7b")
    assert open_source(SMALL, "qwen2.5-7b").shape == SMALL


def test_a_hybrid_model_is_drawn_layer_by_layer() -> None:
    source = open_source(HYBRID, sampling=Sampling(n_tokens=32, n_query=4))
    windowed, wide = source.layer(0), source.layer(2)
    assert windowed.k.shape == (32, 2, 64) and windowed.window == 8
    assert windowed.visible.sum(axis=1).max() == 8
    assert wide.k.shape == (32, 1, 128) and wide.v.shape == (32, 1, 64) and wide.q.shape == (4, 4, 128)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_capture_gives_its_own_numbers(dtype: type) -> None:
    capture = small_capture(dtype=dtype)
    source = open_source(capture=capture)
    layer = source.layer(2)
    assert ("so f16 is exact" in source.info.description) == (dtype is np.float16)
    np.testing.assert_array_equal(layer.k, capture.layers[2].k.astype(np.float32))
    np.testing.assert_array_equal(layer.v, capture.layers[2].v.astype(np.float32))
    np.testing.assert_array_equal(layer.q, np.asarray(capture.layers[2].q, np.float32))
    np.testing.assert_array_equal(layer.positions, np.arange(5, 17))
    np.testing.assert_array_equal(layer.query_positions, [14, 15, 16])
    assert layer.logit_scale == 0.125


def test_sampled_heads_keep_their_group_of_query_heads() -> None:
    capture = small_capture()
    layer = open_source(capture=capture, sampling=Sampling(n_query=1, n_head_kv=1)).layer(0)
    assert layer.k.shape == (12, 1, 64) and layer.q.shape == (1, 2, 64)
    np.testing.assert_array_equal(layer.q, np.asarray(capture.layers[0].q)[:1, :2])


def test_a_capture_without_queries_gets_synthetic_ones() -> None:
    source = open_source(capture=small_capture(queries=False), seed=3)
    assert (source.info.queries, source.info.seed) == ("synthetic", 3)
    layer = source.layer(1)
    assert layer.q.shape == (6, 4, 64) and layer.query_positions.min() >= 11
    np.testing.assert_array_equal(layer.q, source.layer(1).q)


def test_a_capture_says_where_it_is_from(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    save_capture(small_capture(), path)
    info = open_source(capture=path).info
    assert (info.kind, info.name, info.queries, info.seed) == ("capture", "run.npz", "captured", None)
    assert (info.n_tokens, info.n_query, info.n_head_kv) == (12, 3, "2 of 2")


def test_the_shape_of_a_capture_has_no_cache_where_nothing_was_captured() -> None:
    capture = small_capture()
    partial = replace(capture, layers=(capture.layers[0], capture.layers[3]))
    assert capture_shape(partial).kv_layers == (0, 3)
    assert capture_shape(capture).layers == SMALL.layers


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (replace(SMALL, layers=SMALL.layers[:3]), r"layers 0..3 \(4\), small keeps a cache in 0..2 \(3\)"),
        (
            replace(SMALL, layers=(LayerShape(8, 2, 64, 64),) * 4),
            r"layer 0 has .* \(4, 2, 64, 64\).*\(8, 2, 64, 64\)",
        ),
    ],
)
def test_a_capture_of_another_model_is_refused(shape: ModelShape, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        open_source(shape, capture=small_capture())
    assert "\n" not in str(caught.value)


def test_queries_before_the_first_token_are_not_used() -> None:
    capture = small_capture()
    early = replace(capture, q_positions=np.array([2, 3, 16], dtype=np.int32))
    assert open_source(capture=early).layer(0).query_positions.tolist() == [16]
    with pytest.raises(CaptureError, match="before the first token"):
        open_source(capture=replace(capture, q_positions=np.array([1, 2, 3], dtype=np.int32))).layer(0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: open_source(profile="typical", capture="x.npz"), UsageError, "choose one"),
        (lambda: open_source(profile="none"), UsageError, "unknown profile 'none'; known: typical"),
        (lambda: open_source(seed=-1), UsageError, "negative"),
        (lambda: open_source(capture="no/such.npz"), CaptureError, "no such file"),
        (lambda: open_source(load_preset("deepseek-v3")), ShapeError, "latent"),
        (lambda: Sampling(n_tokens=0), UsageError, "at least 1"),
        (
            lambda: open_source(replace(SMALL, layers=(LayerShape(0, 0, 0, 0, keeps_cache=False),))),
            ShapeError,
            "no layer that keeps a cache",
        ),
    ],
)
def test_what_cannot_be_a_source_is_one_line(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
