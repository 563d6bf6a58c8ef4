"""Proof: a context shift moves every layer's K as its own type needs, or is refused.

A shift turns the stored K of the tokens that stay: quantized rows are decoded, unrotated, turned, rotated
and packed again. Layer 2 alone is quantized over a float32 cache, so that the tokens of the prompt have the
same K as in a run without quantization; after the shift they must still agree up to the error of packing
twice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvquant.formats.hadamard import llama_block, unrotate
from kvquant.llama.server import LlamaServer
from kvquant.llama.state import SequenceState, load_state
from kvquant.model.architectures import read_shape
from kvquant.model.shape import ModelShape
from llama.proof import PATCHED, PROMPT, generate, needs_patched, small
from llama.test_proof_blocks import UNROTATED
from tested_types import TESTED_TYPES

Model = Callable[[str], Path]

LAYER = 2
TEXT = PROMPT[:220]
N_COMPARED = 64
"""Tokens of the prompt that are still there after one shift of a full context of 256."""

# Twice the normalised error of packing Gaussian values once, and half as much again.
MAX_NMSE = {"f16": 1e-6, "q8_0": 1e-4, "q4_0": 0.025, "q5_1": 0.006, "iq4_nl": 0.022, "tq3": 0.095}


def shifted(model: Path, shape: ModelShape, policy: str | None) -> tuple[SequenceState, str]:
    """The saved slot after more tokens than the context holds, and the server's log."""
    assert PATCHED is not None
    options = small(
        model, n_ctx=256, k_type="f32", v_type="f32", kv_layers=policy, extra=("--context-shift",)
    )
    with LlamaServer(PATCHED, options) as server:
        generate(server, n_predict=60, prompt=TEXT)
        return load_state(server.save_slot(), shape), server.log_text()


def first_keys(state: SequenceState, shape: ModelShape, layer: int, rotated: bool) -> np.ndarray:
    """K of the first tokens by position, unrotated if `rotated`, float32 (N_COMPARED, width)."""
    (cache,) = state.caches
    stored = next(entry for entry in cache.layers if entry.layer == layer)
    values = stored.k.values()[np.argsort(cache.positions)[:N_COMPARED]]
    head_dim = shape.layers[layer].head_dim_k
    block = llama_block(head_dim, "k")
    if not rotated or block is None or stored.k.type in UNROTATED:
        return values
    return np.asarray(unrotate(values.reshape(-1, head_dim), block)).reshape(values.shape)


def nmse(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.square(values - expected).sum() / np.square(expected).sum())


@needs_patched
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
@pytest.mark.parametrize("type_name", [name for name in MAX_NMSE if name in TESTED_TYPES])
def test_keys_are_turned_in_their_own_type(arch: str, type_name: str, proof_model: Model) -> None:
    model = proof_model(arch)
    shape = read_shape(model)
    plain, plain_log = shifted(model, shape, None)
    state, log = shifted(model, shape, f"{LAYER}:{type_name}")
    assert "slot context shift" in log and "slot context shift" in plain_log
    expected = first_keys(plain, shape, LAYER, rotated=True)
    assert nmse(first_keys(state, shape, LAYER, rotated=True), expected) < MAX_NMSE[type_name]
    assert nmse(first_keys(state, shape, 0, rotated=True), first_keys(plain, shape, 0, rotated=True)) == 0
    if type_name not in UNROTATED:
        wrong = nmse(first_keys(state, shape, LAYER, rotated=False), expected)
        assert wrong > 0.5, "rows that are not unrotated would not be seen"


@needs_patched
def test_a_type_that_cannot_be_turned_turns_shifting_off(proof_model: Model) -> None:
    model = proof_model("llama")
    state, log = shifted(model, read_shape(model), f"{LAYER}:k=bf16")
    assert f"layer {LAYER}: K type bf16 cannot be shifted" in log
    assert "slot context shift" not in log
    assert state.caches[0].positions.max() < 256
