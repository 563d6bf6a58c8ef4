"""Saved sequences: every layout is read back as written, and anything else is one clear error."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvquant.errors import CaptureError
from kvquant.llama.state import SequenceState, load_state, parse_state
from kvquant.model.shape import LayerShape, ModelShape
from llama.saved_sequences import HYBRID, MLA, PLAIN, PRUNED, SLIDING, TYPE_NUMBERS, SavedSequence

MIXED = {0: ("q8_0", "q4_0"), 1: ("f32", "iq4_nl"), 2: ("bf16", "q5_1")}

LAYOUTS = {
    "plain": SavedSequence(PLAIN),
    "mixed": SavedSequence(PLAIN, types=MIXED),
    "other types": SavedSequence(PLAIN, types={0: ("q4_1", "q5_0"), 1: ("f16", "f32")}),
    "version 2": SavedSequence(PLAIN, version=2, packed_tokens=False),
    "version 3": SavedSequence(PLAIN, version=3, types=MIXED),
    "without rotation": SavedSequence(PLAIN, types=MIXED, rotations=(0, 0)),
    "transformed": SavedSequence(PLAIN, types=MIXED, transforms={0: 7, 2: 2**64 - 1}),
    "sliding, transformed": SavedSequence(SLIDING, transforms={0: 1}),
    "extended cells": SavedSequence(PLAIN, extended_cells=True),
    "extended cells of version 2": SavedSequence(PLAIN, extended_cells=True, version=2, packed_tokens=False),
    "transposed": SavedSequence(PLAIN, transposed=True, types={0: ("q8_0", "f32")}),
    "streams": SavedSequence(PLAIN, n_streams=4),
    "one cell": SavedSequence(PLAIN, positions=[0]),
    "one extended cell": SavedSequence(PLAIN, positions=[0], extended_cells=True),
    "rolled": SavedSequence(PLAIN, positions=[3, 4, 5, 1, 2]),
    "sliding": SavedSequence(SLIDING, types=MIXED),
    "hybrid": SavedSequence(HYBRID, extended_cells=True),
    "latent": SavedSequence(MLA),
    "pruned": SavedSequence(PRUNED, transforms={0: 3}),
    "pruned, transposed": SavedSequence(PRUNED, transposed=True),
}


def check_read_as_written(state: SequenceState, saved: SavedSequence) -> None:
    """Tokens, positions, types and rows of every layer are the written ones."""
    assert state.version == saved.version
    assert state.tokens.tolist() == list(range(10, 10 + len(saved.positions)))
    assert tuple(layer.layer for layer in state.layers) == saved.shape.kv_layers
    for cache in state.caches:
        told = (cache.rotation_k, cache.rotation_v)
        assert told == (saved.rotations if saved.version >= 4 else (None, None))
        for layer in cache.layers:
            axes = saved.shape.layers[layer.layer]
            last = max(saved.positions)
            seen = [p for p in saved.positions if not axes.window or last - p < axes.window]
            assert cache.positions.tolist() == seen
            types = saved.types.get(layer.layer, ("f16", "f16"))
            assert layer.k.type == types[0] and layer.k.width == axes.n_embd_k
            assert layer.k.transform == saved.transforms.get(layer.layer)
            np.testing.assert_array_equal(layer.k.rows, saved.written[layer.layer, "k"])
            if axes.stores_v:
                assert layer.v is not None and layer.v.type == types[1] and layer.v.width == axes.n_embd_v
                np.testing.assert_array_equal(layer.v.rows, saved.written[layer.layer, "v"])
                assert layer.v.values().shape == (len(seen), axes.n_embd_v)
            else:
                assert layer.v is None
    assert (state.recurrent_n_bytes > 0) is (saved.shape.n_recurrent > 0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_as_written(name: str) -> None:
    saved = LAYOUTS[name]
    check_read_as_written(parse_state(saved.to_bytes(), saved.shape), saved)


def test_meta_read_as_written_can_fail() -> None:
    saved, other = SavedSequence(PLAIN, seed=1), SavedSequence(PLAIN, seed=2)
    state = parse_state(saved.to_bytes(), PLAIN)
    check_read_as_written(state, saved)
    other.to_bytes()
    with pytest.raises(AssertionError):
        check_read_as_written(state, other)
    for change in (
        {"positions": [0, 1, 2, 3, 9]},
        {"types": MIXED},
        {"version": 2},
        {"rotations": (64, 128)},
    ):
        wrong = SavedSequence(PLAIN, seed=1, **change)  # type: ignore[arg-type]
        wrong.to_bytes()
        with pytest.raises(AssertionError):
            check_read_as_written(state, wrong)


def test_rows_are_views_of_the_file() -> None:
    state = parse_state(SavedSequence(PLAIN).to_bytes(), PLAIN)
    assert not state.layers[0].k.data.flags.owndata


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_cut_is_an_error(name: str) -> None:
    saved = LAYOUTS[name]
    data = saved.to_bytes()
    cuts = {*range(0, min(len(data), 200)), *range(0, len(data), 37), len(data) - 1}
    for cut in cuts:
        with pytest.raises(CaptureError):
            parse_state(data[:cut], saved.shape)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", [PLAIN, SLIDING, HYBRID, MLA], ids=lambda shape: shape.name)
def test_a_file_of_another_model_is_refused(name: str, shape: ModelShape) -> None:
    saved = LAYOUTS[name]
    if saved.shape is not shape:
        with pytest.raises(CaptureError):
            parse_state(saved.to_bytes(), shape)


def test_the_same_layers_with_other_widths_are_refused() -> None:
    wider = ModelShape("wider", "llama", 0, (LayerShape(4, 2, 64, 64),) * 3)
    with pytest.raises(CaptureError, match="K of layer 0: row size is 128, expected 256"):
        parse_state(SavedSequence(PLAIN).to_bytes(), wider)


def _changed(at: int, fmt: str, value: int, saved: SavedSequence | None = None) -> bytes:
    data = bytearray((saved or SavedSequence(PLAIN, packed_tokens=False)).to_bytes())
    struct.pack_into(fmt, data, at, value)
    return bytes(data)


# Of a plain sequence of 5 tokens that are not packed: 12 bytes of head, 20 of tokens, then the cache.
STREAMS, N_CELLS, CELLS = 32, 36, 40
TRANSPOSED, N_LAYER, ROTATION, K_TYPE, K_ROW = CELLS + 60, CELLS + 64, CELLS + 68, CELLS + 76, CELLS + 80


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "bytes announced, 0 left"),
        (b"GGUF" + bytes(100), "not a saved sequence"),
        (struct.pack("<III", 0x6767736E, 10, 0), "not a saved sequence"),
        (_changed(4, "<I", 1), "version 1, versions 2, 3, 4"),
        (_changed(4, "<I", 5), "version 5"),
        (_changed(4, "<I", 3), "not a cache type|row size"),
        (_changed(ROTATION, "<I", 96), "rotation of K is 96"),
        (_changed(8, "<I", 2**32 - 1), "tokens: 17179869180 bytes announced"),
        (_changed(STREAMS, "<I", 0), "stream count 0"),
        (_changed(STREAMS, "<I", 257), "stream count 257"),
        (_changed(STREAMS, "<I", 2**32 - 1), "stream count 4294967295"),
        (_changed(N_CELLS, "<I", 0), "no cell"),
        (_changed(N_CELLS, "<I", 2**32 - 1), "cells: .* bytes announced"),
        (_changed(CELLS, "<i", -5), "byte 40: a cell does not belong to exactly one sequence"),
        (_changed(CELLS + 4, "<I", 2), "does not belong to exactly one sequence"),
        (_changed(TRANSPOSED, "<I", 2), "V transposition is 2"),
        (_changed(N_LAYER, "<I", 4), "layer count is 4, expected 3"),
        (_changed(K_TYPE, "<i", 12), "K of layer 0: ggml type 12 is not a cache type"),
        (_changed(K_TYPE, "<i", -1), "ggml type -1"),
        (_changed(K_TYPE, "<i", 8), "row size is 128, expected 68"),
        (_changed(K_ROW, "<Q", 2**64 - 1), "row size is 18446744073709551615"),
        (SavedSequence(PLAIN).to_bytes() + b"\0", "1 bytes after the last layer"),
        (_changed(16, "<I", 9, SavedSequence(PLAIN)), "packed token version is 9"),
        (_changed(20, "<I", 2**32 - 1, SavedSequence(PLAIN)), "packed tokens: .* bytes announced"),
        (_changed(44, "<I", 1, SavedSequence(PLAIN)), "images or audio"),
    ],
)
def test_damage_is_named(data: bytes, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as raised:
        parse_state(data, PLAIN)
    assert "\n" not in str(raised.value)


def test_a_second_full_stream_is_refused() -> None:
    data = bytearray(SavedSequence(PLAIN, packed_tokens=False, n_streams=1).to_bytes())
    struct.pack_into("<I", data, STREAMS, 2)
    with pytest.raises(CaptureError, match="a second stream holds cells"):
        parse_state(bytes(data) + data[N_CELLS:], PLAIN)


def test_the_mark_of_rows_stored_without_rotation_is_read() -> None:
    types = dict.fromkeys(range(3), ("q8_0", "q4_0"))
    saved = SavedSequence(PLAIN, packed_tokens=False, types=types)
    data = bytearray(saved.to_bytes())
    assert not parse_state(bytes(data), PLAIN).layers[0].k.marked_unrotated
    struct.pack_into("<i", data, K_TYPE, TYPE_NUMBERS["q8_0"] | 1 << 16)
    state = parse_state(bytes(data), PLAIN)
    check_read_as_written(state, saved)
    assert state.layers[0].k.marked_unrotated and not state.layers[1].k.marked_unrotated


def test_since_version_4_the_file_says_what_is_not_rotated() -> None:
    first, second, third = parse_state(LAYOUTS["without rotation"].to_bytes(), PLAIN).layers
    assert first.k.marked_unrotated and first.v is not None and first.v.marked_unrotated
    assert not second.k.marked_unrotated and not third.k.marked_unrotated  # f32 and bf16
    assert not parse_state(LAYOUTS["mixed"].to_bytes(), PLAIN).layers[0].k.marked_unrotated


def test_only_keys_can_be_marked_as_transformed() -> None:
    data = bytearray(SavedSequence(PLAIN, packed_tokens=False).to_bytes())
    v_type = len(data) - 3 * (12 + 64 * 5 * 2)
    struct.pack_into("<i", data, v_type, TYPE_NUMBERS["f16"] | 1 << 17)
    with pytest.raises(CaptureError, match="V of layer 0: ggml type 131073 is not a cache type"):
        parse_state(bytes(data), PLAIN)


def test_quantized_v_cannot_be_transposed() -> None:
    data = bytearray(SavedSequence(PLAIN, packed_tokens=False, transposed=True).to_bytes())
    v_type = len(data) - 3 * (12 + 64 * 5 * 2)
    struct.pack_into("<i", data, v_type, TYPE_NUMBERS["q8_0"])
    with pytest.raises(CaptureError, match="V of layer 0: type q8_0 cannot be stored transposed"):
        parse_state(bytes(data), PLAIN)


def test_a_width_no_block_divides_is_refused() -> None:
    narrow = ModelShape("narrow", "llama", 0, (LayerShape(1, 1, 20, 20),))
    data = bytearray(SavedSequence(narrow, packed_tokens=False).to_bytes())
    struct.pack_into("<i", data, K_TYPE, TYPE_NUMBERS["q8_0"])
    with pytest.raises(CaptureError, match="rows of 20 values cannot be q8_0"):
        parse_state(bytes(data), narrow)


def test_recurrent_damage_is_named() -> None:
    good = SavedSequence(HYBRID).to_bytes()
    recurrent = len(good) - (20 + 2 * (12 + 32) + 2 * (12 + 64))
    for at, fmt, value, message in (
        (recurrent, "<I", 2**32 - 1, "recurrent cells: .* bytes announced"),
        (recurrent + 8, "<I", 3, "recurrent cell does not belong to exactly one sequence"),
        (recurrent + 12, "<I", 1, "recurrent transposition is 1"),
        (recurrent + 20, "<i", 8, "type of recurrent convolution 0 is 8"),
        (recurrent + 24, "<Q", 2**64 - 1, "recurrent convolution 0: .* bytes announced"),
    ):
        data = bytearray(good)
        struct.pack_into(fmt, data, at, value)
        with pytest.raises(CaptureError, match=message):
            parse_state(bytes(data), HYBRID)


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    with pytest.raises(CaptureError, match="slot: cannot be read"):
        load_state(path, PLAIN)
    path.write_bytes(b"nonsense")
    with pytest.raises(CaptureError, match="slot: not a saved sequence"):
        load_state(path, PLAIN)
    saved = SavedSequence(PLAIN)
    path.write_bytes(saved.to_bytes())
    check_read_as_written(load_state(path, PLAIN), saved)


@settings(deadline=None)
@given(st.sampled_from(sorted(LAYOUTS)), st.data())
def test_damaged_files_give_a_state_or_a_capture_error(name: str, data: st.DataObject) -> None:
    saved = LAYOUTS[name]
    content = bytearray(saved.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(content) - 1, 400)) | st.integers(0, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 2, 127, 128, 255]) | st.integers(0, 255))
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    extra = data.draw(st.binary(max_size=8))
    try:
        state = parse_state(bytes(content[:cut]) + extra, saved.shape)
    except CaptureError as error:
        assert "\n" not in str(error)
    else:
        assert tuple(layer.layer for layer in state.layers) == saved.shape.kv_layers


@settings(deadline=None)
@given(st.sampled_from([PLAIN, SLIDING, HYBRID, MLA]), st.binary(max_size=400))
def test_any_bytes_behind_a_good_head_give_a_capture_error(shape: ModelShape, tail: bytes) -> None:
    with pytest.raises(CaptureError):
        parse_state(struct.pack("<III", 0x67677371, 3, 0) + tail, shape)
