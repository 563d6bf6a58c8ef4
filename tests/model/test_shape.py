"""Model shapes as values: what they refuse, their JSON form, and the presets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import ShapeError
from kvquant.model.presets import load_preset, load_shape, preset_names
from kvquant.model.shape import MAX_LAYERS, LayerShape, ModelShape, RecurrentState, WindowKind, runs
from kvquant.model.shape_json import shape_from_json, shape_to_json
from model.strategies import model_shapes

FULL = LayerShape(n_head=8, n_head_kv=2, head_dim_k=64, head_dim_v=32)
SLIDING = replace(FULL, window=128)


def model(*layers: LayerShape, **fields: Any) -> ModelShape:
    return ModelShape(**{"name": "test", "arch": "test", "n_ctx_train": 4096, "layers": layers, **fields})


def test_widths_and_layers_with_a_cache() -> None:
    shared = replace(FULL, keeps_cache=False, shares_with=0)
    recurrent = LayerShape(0, 0, 0, 0, keeps_cache=False, recurrent=True)
    shape = model(FULL, recurrent, FULL, shared, state=RecurrentState(3, 5))
    assert (FULL.n_embd_k, FULL.n_embd_v) == (128, 64)
    assert replace(FULL, stores_v=False).n_embd_v == 0
    assert shape.kv_layers == (0, 2)
    assert (shape.n_layer, shape.n_recurrent, shape.window, shape.mla) == (4, 1, 0, False)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda: replace(FULL, head_dim_k=0), "both must be positive"),
        (lambda: replace(FULL, head_dim_v=0), "both must be positive"),
        (lambda: replace(FULL, n_head=-1), "n_head is -1"),
        (lambda: replace(FULL, window=2**25), "window is"),
        (lambda: replace(FULL, shares_with=0), "cannot keep one of its own"),
        (lambda: RecurrentState(2**32, 0), "n_conv"),
        (lambda: model(), "0 layers"),
        (lambda: model(*[FULL] * (MAX_LAYERS + 1)), "513 layers"),
        (lambda: model(FULL, n_ctx_train=-1), "n_ctx_train"),
        (lambda: model(SLIDING), "layers have a window"),
        (lambda: model(FULL, window_kind=WindowKind.SLIDING), "no layer has a window"),
        (lambda: model(SLIDING, replace(FULL, window=64), window_kind=WindowKind.SLIDING), "one window"),
        (
            lambda: model(replace(FULL, keeps_cache=False, shares_with=1), FULL.__class__(0, 0, 0, 0, False)),
            "no cache",
        ),
        (lambda: model(FULL, replace(FULL, keeps_cache=False, shares_with=7)), "keeps no cache"),
        (
            lambda: model(
                FULL, replace(SLIDING, keeps_cache=False, shares_with=0), window_kind=WindowKind.SLIDING
            ),
            "window differs",
        ),
    ],
)
def test_refuses(wrong: Any, reason: str) -> None:
    with pytest.raises(ShapeError, match=reason):
        wrong()


def test_runs_of_equal_layers() -> None:
    assert runs((FULL, FULL, SLIDING, FULL)) == [(2, FULL), (1, SLIDING), (1, FULL)]
    assert runs((FULL,)) == [(1, FULL)]


@given(model_shapes())
def test_json_round_trip(shape: ModelShape) -> None:
    assert shape_from_json(shape_to_json(shape)) == shape


def test_json_short_forms() -> None:
    short = shape_from_json(
        """{"layers": [
            {"repeat": 2, "layers": [{"repeat": 2, "recurrent": true},
                                     {"n_head": 8, "n_head_kv": 2, "head_dim": 64}]},
            {"n_head": 8, "n_head_kv": 2, "head_dim": 64, "nextn": true}]}""",
        name="mine",
    )
    assert short.name == "mine"
    assert short.kv_layers == (2, 5)
    assert (short.layers[2].head_dim_k, short.layers[2].head_dim_v) == (64, 64)
    assert short.layers[6].nextn


LAYER = {"n_head": 8, "n_head_kv": 2, "head_dim": 64}
KEYS = [
    *(
        "name",
        "arch",
        "n_ctx_train",
        "layers",
        "window_kind",
        "state",
        "source",
        "n_conv",
        "n_state",
        "repeat",
    ),
    *("n_head", "n_head_kv", "head_dim", "head_dim_k", "head_dim_v", "window", "recurrent", "nextn"),
    *("shares_with", "keeps_cache", "stores_v", "other"),
]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"layers": [NaN]}', "NaN is not a number"),
        ('{"layers": ' + "9" * 5000 + "}", "is not JSON"),
        ("[]", "the shape must be an object"),
        ("{}", "layers must be a list"),
        ({"layers": []}, "layers must be a list"),
        ({"layers": [3]}, "layers\\[0\\] must be an object"),
        ({"layers": [{"heads": 3}]}, "unknown key 'heads'; known: .*head_dim"),
        ({"layers": [LAYER], "colour": 1}, "unknown key 'colour'"),
        ({"layers": [{**LAYER, "n_head_kv": 2.0}]}, "n_head_kv is 2.0; write an integer"),
        ({"layers": [{**LAYER, "n_head_kv": True}]}, "n_head_kv is True; write an integer"),
        ({"layers": [{**LAYER, "n_head_kv": -2}]}, "n_head_kv is -2"),
        ({"layers": [{**LAYER, "stores_v": 1}]}, "write true or false"),
        ({"layers": [{**LAYER, "repeat": 0}]}, "repeat is 0"),
        ({"layers": [{**LAYER, "repeat": 10**9}]}, "more than 512 layers"),
        ({"layers": [{"repeat": 2, "layers": [{"layers": [LAYER]}]}]}, "unknown key 'layers'"),
        ({"layers": [{"repeat": 2, "layers": []}]}, "layers\\[0\\].layers must be a list"),
        ({"layers": [LAYER], "name": 3}, "name is 3; write a string"),
        (
            {"layers": [LAYER], "window_kind": "round"},
            "window_kind is 'round'; known: none, sliding, chunked",
        ),
        ({"layers": [LAYER], "state": {"n_conv": 3}}, "state.n_state is None"),
    ],
)
def test_json_refuses(document: Any, reason: str) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(ShapeError, match=reason) as caught:
        shape_from_json(text)
    assert len(str(caught.value)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4))
def test_any_json_gives_a_shape_or_a_clear_error(value: Any, top: dict[str, Any]) -> None:
    for document in (value, top, {**top, "layers": [value]}, {"layers": [{**LAYER, **top}]}):
        text = json.dumps(document)
        try:
            shape = shape_from_json(text)
            assert shape_from_json(shape_to_json(shape)) == shape
        except ShapeError as error:
            assert str(error).isprintable()


def test_every_preset_loads_and_says_where_it_comes_from() -> None:
    for name in preset_names():
        shape = load_preset(name)
        assert shape.kv_layers
        assert shape.source
        assert name == name.lower()


def test_shapes_by_name_or_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(shape_to_json(load_preset("gpt-oss-20b")), encoding="utf-8")
    assert load_shape(str(path)) == load_shape("gpt-oss-20b")
    with pytest.raises(ShapeError, match=r"unknown shape 'nope'; known: .*llama-8b"):
        load_shape("nope")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ShapeError, match="cannot be read as a shape"):
        load_shape(str(path))
    path.write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ShapeError, match="larger than"):
        load_shape(str(path))
