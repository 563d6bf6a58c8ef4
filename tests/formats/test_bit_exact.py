"""Byte for byte what ggml stores and reads: golden files always, the library itself where it is built."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edge_blocks import edge_blocks
from formats.checks import check_same_bytes, check_same_values
from formats.layouts import BLOCK, GGML
from formats.oracle import libggml
from kvquant.formats import ggml
from kvquant.formats.registry import get_format

GOLDEN = Path(__file__).parent.parent / "golden"
GROUPS = sorted(edge_blocks(8))

every_format = pytest.mark.parametrize("name", GGML)


@cache
def golden(file: str) -> dict[str, npt.NDArray[np.generic]]:
    with np.load(GOLDEN / file) as arrays:
        return dict(arrays)


def test_the_golden_files_are_for_the_commit_the_formats_name() -> None:
    provenance = json.loads((GOLDEN / "provenance.json").read_text())
    assert provenance["llama_cpp_commit"] == ggml.COMMIT
    assert "-DCMAKE_C_FLAGS=-ffp-contract=off" in provenance["flags"]


def test_the_golden_inputs_cover_every_group() -> None:
    inputs = golden("inputs.npz")
    assert sorted(inputs) == GROUPS
    zeros = np.concatenate([blocks[blocks == 0] for blocks in inputs.values()])
    every = np.concatenate([blocks.reshape(-1) for blocks in inputs.values()])
    assert np.signbit(zeros).any() and not np.signbit(zeros).all()
    assert (np.abs(every[every != 0]) < 2.0**-126).any(), "no subnormals"
    assert np.abs(every).max() == np.finfo(np.float32).max
    assert np.isfinite(every).all()


@pytest.mark.parametrize("group", GROUPS)
@every_format
def test_golden_bytes(name: str, group: str) -> None:
    x, expected = golden("inputs.npz")[group], golden(f"{name}.npz")[group]
    fmt = get_format(name)
    check_same_bytes(fmt.quantize(x), expected, x, f"{name}, {group}")
    check_same_bytes(fmt.quantize(torch.from_numpy(x)).numpy(), expected, x, f"{name} in Torch, {group}")


@every_format
def test_golden_values(name: str) -> None:
    arrays, fmt = golden(f"{name}.npz"), get_format(name)
    stored, expected = arrays["stored"], arrays["stored_values"]
    check_same_values(fmt.dequantize(stored, 32), expected, name)
    check_same_values(fmt.dequantize(torch.from_numpy(stored), 32).numpy(), expected, f"{name} in Torch")


@pytest.mark.parametrize("seed", [1, 2])
@every_format
def test_live_bytes_and_values(name: str, seed: int) -> None:
    oracle, fmt = libggml(), get_format(name)
    for group, x in edge_blocks(200, seed).items():
        expected = oracle.quantize(x, name)
        check_same_bytes(fmt.quantize(x), expected, x, f"{name}, {group}, seed {seed}")
        tensor = torch.from_numpy(x)
        check_same_bytes(fmt.quantize(tensor).numpy(), expected, x, f"{name} in Torch, {group}, seed {seed}")
        values = oracle.dequantize(expected, name, 32)
        check_same_values(fmt.dequantize(expected, 32), values, f"{name}, {group}, seed {seed}")


@every_format
def test_live_rows(name: str) -> None:
    oracle, fmt = libggml(), get_format(name)
    x = np.random.default_rng(3).standard_normal((37, 576)).astype(np.float32)
    expected = oracle.quantize(x, name)
    assert fmt.n_bytes(576) == oracle.n_bytes(576, name)
    check_same_bytes(fmt.quantize(x), expected, x, name)
    check_same_values(fmt.dequantize(expected, 576), oracle.dequantize(expected, name, 576), name)


@pytest.mark.parametrize("name", [name for name in BLOCK if not name.startswith("iq4_nl")])
def test_quantize_chunk_is_the_ref_function(name: str) -> None:
    oracle = libggml()
    for group, x in edge_blocks(50, seed=4).items():
        check_same_bytes(oracle.quantize(x, name), oracle.quantize_ref(x, name), x, f"{name}, {group}")


def test_a_block_that_tells_division_from_a_reciprocal() -> None:
    # Torch computes number / tensor as number * reciprocal, an ulp off: of 786,432 blocks this one shows it.
    x = np.random.default_rng(1).standard_normal((76547, 32)).astype(np.float32)[-1:]
    fmt = get_format("iq4_nl")
    check_same_bytes(fmt.quantize(torch.from_numpy(x)).numpy(), fmt.quantize(x), x, "iq4_nl in Torch")
    check_same_bytes(fmt.quantize(x), libggml().quantize(x, "iq4_nl"), x, "iq4_nl")


def test_the_two_iq4_nl_encoders_differ() -> None:
    # If upstream makes them one, the cache variant has to go.
    oracle, x = libggml(), edge_blocks(50)["normal"]
    assert (oracle.quantize(x, "iq4_nl") != oracle.quantize(x, "iq4_nl_cache")).any()


def test_every_fp16_pattern_is_read_exactly() -> None:
    patterns = np.arange(1 << 16, dtype="<u2")
    expected = np.float32(struct.unpack(f"<{patterns.size}e", patterns.tobytes()))
    packed = patterns.view(np.uint8)
    check_same_values(get_format("f16").dequantize(packed, patterns.size), expected, "f16")
    check_same_values(
        get_format("f16").dequantize(torch.from_numpy(packed), patterns.size).numpy(), expected, "f16"
    )


def test_every_bf16_pattern_survives() -> None:
    patterns = np.arange(1 << 16, dtype="<u2")
    fmt = get_format("bf16")
    values = fmt.dequantize(patterns.view(np.uint8), patterns.size)
    assert (values.view(np.uint32) == patterns.astype(np.uint32) << 16).all()
    quiet = np.where(np.isnan(values), patterns | 64, patterns).astype("<u2")
    assert fmt.quantize(values).tobytes() == quiet.tobytes()


@pytest.mark.parametrize("sign", [0, 0x80000000])
def test_nan_of_plain_formats(sign: int) -> None:
    # Quiet and signalling, smallest and largest payload: f32 keeps all bits, bf16 the upper half, f16 the
    # sign.
    bits = np.array([0x7F800001, 0x7FC00000, 0x7FC12345, 0x7FFFFFFF], np.uint32) | np.uint32(sign)
    x = bits.view(np.float32)
    assert get_format("f32").quantize(x).tobytes() == bits.astype("<u4").tobytes()
    halves = (bits >> 16 | 64).astype("<u2")
    assert get_format("bf16").quantize(x).tobytes() == halves.tobytes()
    assert get_format("f16").quantize(x).tobytes() == np.full(4, 0x7E00 | sign >> 16, "<u2").tobytes()
    for name in ("f32", "f16", "bf16"):
        tensor = get_format(name).quantize(torch.from_numpy(x))
        assert tensor.numpy().tobytes() == get_format(name).quantize(x).tobytes(), name
