"""Sides follow what a layer stores, and their bytes are llama.cpp's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.strategies import HYBRID, SMALL
from kvquant.memory import ContextOptions, memory_of
from kvquant.model.presets import load_shape
from kvquant.model.shape import LayerShape, ModelShape
from kvquant.policy import parse_policy
from kvquant.search.sides import assignment_of, policy_of, side_bytes, sides_of

TYPES = ("f16", "q8_0", "q4_0")
OPTIONS = ContextOptions(4096, 1)


def test_hybrid_layers_have_no_side_and_shared_ones_none_of_their_own() -> None:
    assert {place.layer for place in sides_of(HYBRID)} == set(HYBRID.kv_layers)
    layers = (*SMALL.layers, LayerShape(8, 2, 64, 64, keeps_cache=False, shares_with=0))
    shared = replace(SMALL, layers=layers)
    assert sides_of(shared) == sides_of(SMALL)


def test_where_v_is_a_part_of_k_there_is_one_side() -> None:
    layer = LayerShape(8, 1, 576, 512, stores_v=False)
    shape = ModelShape("mla", "deepseek2", 4096, (layer, layer))
    assert [place.side for place in sides_of(shape)] == ["kv", "kv"]
    types = dict.fromkeys(sides_of(shape), "q8_0")
    assert str(policy_of(types)) == "0-1:q8_0"
    assert side_bytes(shape, TYPES, OPTIONS)[sides_of(shape)[0], "f16"] > 0


@pytest.mark.parametrize("name", ["gemma-3-1b", "qwen3.5-2b"])
@given(data=st.data())
def test_bytes_add_up_to_what_memory_says_and_a_policy_keeps_every_type(
    name: str, data: st.DataObject
) -> None:
    shape = load_shape(name)
    sides = sides_of(shape)
    types = {place: data.draw(st.sampled_from(TYPES)) for place in sides}
    policy = policy_of(types)
    assert assignment_of(policy, shape) == types
    assert assignment_of(parse_policy(str(policy)), shape) == types
    sizes = side_bytes(shape, TYPES, OPTIONS)
    total = memory_of(shape, policy.resolve(shape), OPTIONS).kv_bytes
    assert sum(sizes[place, kind] for place, kind in types.items()) == total
