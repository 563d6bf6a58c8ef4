"""The config.json of a Hugging Face model where a shape is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import ShapeError
from kvquant.model.hf_config import PLAIN
from kvquant.model.presets import load_preset, load_shape
from kvquant.model.shape_json import shape_from_json

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
}


def test_it_gives_the_shape_that_ships(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA))
    found, shipped = load_shape(str(file)), load_preset("llama-3.1-8b")
    assert (found.layers, found.n_ctx_train, found.arch) == (
        shipped.layers,
        shipped.n_ctx_train,
        shipped.arch,
    )


def test_head_widths_and_heads_that_are_left_out() -> None:
    document = {**LLAMA, "head_dim": 64, "num_key_value_heads": None}
    layer = shape_from_json(json.dumps(document)).layers[0]
    assert (layer.n_head_kv, layer.head_dim_k, layer.head_dim_v) == (32, 64, 64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma3"}, "a Hugging Face configuration of model type 'gemma3'"),
        ({"model_type": 3}, "model type 3"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"num_attention_heads": 0}, "of 0 heads"),
        ({"hidden_size": 0}, "both must be positive"),
    ],
)
def test_what_is_refused_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapeError) as raised:
        shape_from_json(json.dumps({**LLAMA, **changes}), "config.json")
    assert words in str(raised.value) and "\n" not in str(raised.value)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.lists(st.none())
)


@given(st.dictionaries(st.sampled_from([*LLAMA, "head_dim", "layers"]), VALUES), st.sampled_from(list(PLAIN)))
def test_any_values_give_a_shape_or_one_line(changes: dict[str, Any], model_type: str) -> None:
    try:
        shape_from_json(json.dumps({**LLAMA, "model_type": model_type, **changes}))
    except ShapeError as error:
        assert "\n" not in str(error)
