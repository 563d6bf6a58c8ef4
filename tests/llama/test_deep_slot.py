"""The slots that benchmarks write are what the reader of llama.cpp's slots finds at the pin."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark_scripts import load_benchmark
from kvquant.llama.state import load_state
from kvquant.model.shape import LayerShape, ModelShape
from kvquant.policy import parse_policy

deep_slot = load_benchmark("deep_slot")

SHAPE = ModelShape("m", "llama", 512, (LayerShape(4, 2, 128, 64),) * 2)
TOKENS = tuple(range(300))


@pytest.mark.parametrize(
    ("policy", "rotation"),
    [
        ("*:f16", (0, 0)),
        ("*:q8_0", (128, 64)),
        ("*:k=f16/v=q4_0", (0, 64)),
        ("0:q8_0,1:f16", (128, 64)),
    ],
)
def test_a_slot_holds_its_tokens_types_and_rotations(
    policy: str, rotation: tuple[int, int], tmp_path: Path
) -> None:
    resolved = parse_policy(policy).resolve(SHAPE)
    deep_slot.write_deep_slot(tmp_path / "slot", SHAPE, resolved, TOKENS)
    state = load_state(tmp_path / "slot", SHAPE)
    (cache,) = state.caches
    assert tuple(state.tokens) == TOKENS == tuple(cache.positions)
    assert (cache.rotation_k, cache.rotation_v) == rotation
    for stored, wanted in zip(cache.layers, resolved.layers, strict=True):
        assert stored.v is not None
        assert (stored.k.type, stored.v.type) == (wanted.k_type, wanted.v_type)
        assert (stored.k.width, stored.v.width) == (256, 128)
