"""From a saved sequence to a capture, without a server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvquant.errors import CaptureError
from kvquant.llama.capture import capture_of_state
from kvquant.llama.state import parse_state
from kvquant.model.capture import KVCapture
from kvquant.model.shape import ModelShape
from llama.saved_sequences import HYBRID, MLA, PLAIN, SLIDING, SavedSequence

ALL_F32 = dict.fromkeys(range(3), ("f32", "f32"))


def _capture(saved: SavedSequence) -> KVCapture:
    state = parse_state(saved.to_bytes(), saved.shape)
    scales = dict.fromkeys(saved.shape.kv_layers, 0.125)
    return capture_of_state(state, saved.shape, scales, "a test")


@pytest.mark.parametrize("shape", [PLAIN, HYBRID, SLIDING], ids=lambda shape: shape.name)
@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 4], [3, 4, 0, 1, 2]], ids=["in order", "rolled"])
@pytest.mark.parametrize("transposed", [False, True])
def test_values_are_by_token_and_head(shape: ModelShape, positions: list[int], transposed: bool) -> None:
    saved = SavedSequence(shape, positions=positions, types=ALL_F32, transposed=transposed)
    capture = _capture(saved)
    assert capture.positions.tolist() == [0, 1, 2, 3, 4]
    assert capture.queries == "none" and capture.n_layer == shape.n_layer
    assert tuple(layer.axes.layer for layer in capture.layers) == shape.kv_layers
    for layer in capture.layers:
        axes = shape.layers[layer.axes.layer]
        kept = [p for p in positions if not axes.window or 4 - p < axes.window]
        assert capture.positions_of(layer).tolist() == sorted(kept)
        for side, values in (("k", layer.k), ("v", layer.v)):
            written = saved.written[layer.axes.layer, side].view(np.float32).reshape(len(kept), 2, 32)
            for row, position in enumerate(kept):
                np.testing.assert_array_equal(values[sorted(kept).index(position)], written[row])
        assert layer.axes.window == axes.window and layer.axes.logit_scale == 0.125


def test_a_rounded_cache_is_no_capture() -> None:
    with pytest.raises(CaptureError, match="layer 1 is stored as q8_0; a capture needs an f32 cache"):
        _capture(SavedSequence(PLAIN, types={**ALL_F32, 1: ("f32", "q8_0")}))


def test_latent_attention_has_no_v_to_capture() -> None:
    with pytest.raises(CaptureError, match="layer 0 stores no V"):
        _capture(SavedSequence(MLA, types=ALL_F32))


def test_a_window_that_does_not_end_with_the_text_is_refused() -> None:
    state = parse_state(SavedSequence(SLIDING, types=ALL_F32).to_bytes(), SLIDING)
    full, windowed = state.caches
    shifted = replace(state, caches=(full, replace(windowed, positions=windowed.positions - 1)))
    with pytest.raises(CaptureError, match="does not hold the last tokens"):
        capture_of_state(shifted, SLIDING, dict.fromkeys(range(3), 1.0), "a test")
