"""Proof: the stored blocks are the package's quantizers applied to the float32 cache, rotation included.

A layer's own K and V do not depend on how they are stored, only later layers' do. So each layer is
quantized alone over a float32 cache: everything up to it computes the same numbers as a run that quantizes
nothing, and its rows can be held byte for byte against the package's.

Exact for f16, bf16, q4_0, q4_1, q5_0, q5_1 and iq4_nl (as iq4_nl_cache, the rounding that ggml_set_rows
uses). For q8_0 llama.cpp's SIMD kernels multiply by 127/amax where the reference multiplies by
1/(amax/127), and round ties to even where the reference rounds them away from zero: a value may come out
one step apart, never its scale. `q8_0_simd` below is that arithmetic, and on x86 it gives every byte.
Against the reference that was 63 of 25.6 million Gaussian values; bounded here by one in 10,000.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kvquant.formats.hadamard import llama_block, rotate
from kvquant.formats.registry import UPSTREAM_TYPES, get_format
from kvquant.llama.state import SequenceState, StoredRows
from kvquant.model.architectures import read_shape
from kvquant.model.shape import ModelShape
from llama.proof import PATCHED, STOCK, WITH_V, Outcome, needs_both, needs_patched, run, small

Model = Callable[[str], Path]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

UNROTATED = ("f32", "f16", "bf16")
STORED_AS = {"iq4_nl": "iq4_nl_cache"}
Q8_0_MAX_RATE = 1 / 10_000
"""Share of values that may differ, on top of a single one in a small layer."""


def q8_0_simd(rows: Floats) -> Bytes:
    """quantize_row_q8_0 as ggml/src/ggml-cpu/arch/x86/quants.c computes it with AVX2, uint8 (n, n_bytes)."""
    blocks = rows.reshape(-1, 32)
    amax = np.abs(blocks).max(axis=1, keepdims=True)
    scale = (amax / np.float32(127)).astype(np.float16)
    with np.errstate(divide="ignore"):
        inverse = np.where(amax > 0, np.float32(127) / amax, np.float32(0))
    values = np.rint(blocks * inverse).astype(np.int8)
    packed = np.concatenate([scale.view(np.uint8), values.view(np.uint8)], axis=1)
    return packed.reshape(len(rows), -1)


def expected_rows(values: Floats, type_name: str, head_dim: int, rotation: bool, side: str) -> Floats:
    """What is packed: each head rotated when the type is quantized, float32 (n_cells, width)."""
    block = llama_block(head_dim, "k" if side == "k" else "v")
    if type_name in UNROTATED or block is None or not rotation:
        return values
    heads = values.reshape(-1, head_dim)
    return np.asarray(rotate(heads, block)).reshape(values.shape)


def mismatches(stored: StoredRows, values: Floats, head_dim: int, rotation: bool, side: str) -> list[str]:
    """Every way in which the stored rows are not the quantized values."""
    rows = expected_rows(values, stored.type, head_dim, rotation, side)
    reference = get_format(STORED_AS.get(stored.type, stored.type)).quantize(rows)
    n_differ = int(np.count_nonzero(reference != stored.rows))
    if stored.type != "q8_0":
        return [f"{stored.type}: {n_differ} of {reference.size} bytes differ"] if n_differ else []
    found = []
    if platform.machine() == "x86_64":
        n_simd = int(np.count_nonzero(q8_0_simd(rows) != stored.rows))
        if n_simd:
            found.append(f"q8_0: {n_simd} of {reference.size} bytes are not those of the SIMD kernel")
    there, wanted = stored.rows.reshape(-1, 34), reference.reshape(-1, 34)
    if np.any(there[:, :2] != wanted[:, :2]):
        found.append("q8_0: a scale differs from the reference")
    steps = np.abs(there[:, 2:].view(np.int8).astype(int) - wanted[:, 2:].view(np.int8))
    if steps.max() > 1 or np.count_nonzero(steps) > 1 + Q8_0_MAX_RATE * steps.size:
        found.append(f"q8_0: {np.count_nonzero(steps)} of {steps.size} values differ, by up to {steps.max()}")
    return found


def check_layer(
    state: SequenceState, plain: SequenceState, shape: ModelShape, layer: int, rotation: bool
) -> None:
    """The stored layer is the quantized one of the float32 run."""
    stored = next(entry for entry in state.layers if entry.layer == layer)
    values = next(entry for entry in plain.layers if entry.layer == layer)
    assert stored.v is not None and values.v is not None
    axes = shape.layers[layer]
    found = mismatches(stored.k, values.k.values(), axes.head_dim_k, rotation, "k")
    found += mismatches(stored.v, values.v.values(), axes.head_dim_v, rotation, "v")
    assert not found, f"layer {layer}: {'; '.join(found)}"


def float_run(folder: Path | None, model: Path) -> Outcome:
    return run(folder, small(model, k_type="f32", v_type="f32"), n_predict=0)


@needs_patched
@pytest.mark.parametrize("arch", WITH_V)
def test_each_layer_alone(arch: str, proof_model: Model) -> None:
    model = proof_model(arch)
    shape = read_shape(model)
    plain = float_run(PATCHED, model).state(shape)
    types = [name for name in UPSTREAM_TYPES if name != "f32"]
    for number, layer in enumerate(shape.kv_layers):
        k_type, v_type = types[number % len(types)], types[(number + 3) % len(types)]
        policy = f"{layer}:k={k_type}/v={v_type}"
        options = small(model, k_type="f32", v_type="f32", kv_layers=policy)
        state = run(PATCHED, options, n_predict=0).state(shape)
        for stored in state.layers:
            assert stored.v is not None
            here = (k_type, v_type) if stored.layer == layer else ("f32", "f32")
            assert (stored.k.type, stored.v.type) == here, f"{policy}: layer {stored.layer}"
        check_layer(state, plain, shape, layer, rotation=True)


@needs_patched
@pytest.mark.parametrize("type_name", [name for name in UPSTREAM_TYPES if name != "f32"])
@pytest.mark.parametrize("rotation", [True, False])
def test_each_type(type_name: str, rotation: bool, proof_model: Model) -> None:
    model = proof_model("llama")
    shape = read_shape(model)
    plain = float_run(PATCHED, model).state(shape)
    options = small(model, k_type="f32", v_type="f32", kv_layers=f"2:{type_name}", rotation=rotation)
    check_layer(run(PATCHED, options, n_predict=0).state(shape), plain, shape, 2, rotation)


@needs_both
@pytest.mark.parametrize("type_name", ["q8_0", "q4_0", "iq4_nl"])
def test_stock_stores_the_same_blocks(type_name: str, proof_model: Model) -> None:
    """Only the first layer of a uniform cache has inputs that its types cannot have changed."""
    model = proof_model("llama")
    shape = read_shape(model)
    plain = float_run(STOCK, model).state(shape)
    uniform = run(STOCK, small(model, k_type=type_name, v_type=type_name), n_predict=0).state(shape)
    check_layer(uniform, plain, shape, 0, rotation=True)


def test_meta_a_wrong_block_is_seen() -> None:
    values = np.random.default_rng(0).standard_normal((40, 128)).astype(np.float32)
    for type_name in UPSTREAM_TYPES:
        rows = expected_rows(values, type_name, 64, True, "k")
        packed = get_format(STORED_AS.get(type_name, type_name)).quantize(rows)
        if type_name == "q8_0":
            packed = q8_0_simd(rows)
        assert not mismatches(StoredRows(type_name, 128, packed), values, 64, True, "k")
        unrotated = type_name in UNROTATED
        assert bool(mismatches(StoredRows(type_name, 128, packed), values, 64, False, "k")) is not unrotated
        changed = packed.copy()
        changed[7, 1] ^= 1
        assert mismatches(StoredRows(type_name, 128, changed), values, 64, True, "k")
