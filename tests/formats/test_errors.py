"""What a caller gets for input a format cannot take, and what each kind of array gives back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kvquant
from formats import checks
from formats.layouts import BLOCK, GGML
from kvquant.errors import FormatError
from kvquant.formats.q8_0 import Q8_0
from kvquant.formats.registry import CACHE_TYPES, cache_format, format_names, get_format, register

every_format = pytest.mark.parametrize("name", GGML)
block_formats = pytest.mark.parametrize("name", BLOCK)


def test_the_cache_types_come_first() -> None:
    assert set(format_names()[: len(CACHE_TYPES)]) == set(CACHE_TYPES)
    assert kvquant.format_names() == format_names()


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("f32", 32),
        ("f16", 16),
        ("bf16", 16),
        ("q8_0", 8.5),
        ("q4_0", 4.5),
        ("q4_1", 5),
        ("iq4_nl", 4.5),
        ("q5_0", 5.5),
        ("q5_1", 6),
        ("iq4_nl_cache", 4.5),
    ],
)
def test_bits_per_value(name: str, bits: float) -> None:
    fmt = get_format(name)
    assert fmt.bits_per_value(128) == bits
    assert fmt.n_bytes(128) == 128 * bits / 8


def test_unknown_name() -> None:
    with pytest.raises(FormatError, match=r"unknown format 'q3_9'; known: f32, f16, bf16, q8_0"):
        kvquant.quantize(np.zeros(32, np.float32), "q3_9")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(FormatError, match="'q8_0' already exists"):
        register(Q8_0())


@block_formats
@pytest.mark.parametrize("width", [1, 31, 33, 100])
def test_width_no_multiple_of_the_block(name: str, width: int) -> None:
    message = (
        rf"{name} packs blocks of 32 values and a width of {width} is not a multiple .*; pad the rows to"
    )
    for call in (
        lambda: kvquant.quantize(np.zeros((2, width), np.float32), name),
        lambda: kvquant.quantize(torch.zeros(2, width), name),
        lambda: kvquant.dequantize(np.zeros((2, 34), np.uint8), name, width=width),
        lambda: get_format(name).bits_per_value(width),
    ):
        with pytest.raises(FormatError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@every_format
def test_negative_width(name: str) -> None:
    with pytest.raises(FormatError, match="-32"):
        get_format(name).n_bytes(-32)


@every_format
@pytest.mark.parametrize(
    "values",
    [np.zeros(32, np.int32), np.zeros(32, bool), np.zeros(32, complex), torch.zeros(32, dtype=torch.int8)],
)
def test_values_that_are_not_floats(name: str, values: Any) -> None:
    with pytest.raises(FormatError, match="quantize takes float values, not"):
        kvquant.quantize(values, name)


@every_format
@pytest.mark.parametrize("number", [np.float32(1), torch.tensor(1.0), 1.0])
def test_a_single_number(name: str, number: Any) -> None:
    with pytest.raises(FormatError, match="rows of values"):
        kvquant.quantize(number, name)


@every_format
@pytest.mark.parametrize("packed", [np.zeros(64, np.int8), np.zeros(64, np.float32), torch.zeros(64)])
def test_bytes_of_another_dtype(name: str, packed: Any) -> None:
    with pytest.raises(FormatError, match="takes bytes as uint8, not"):
        kvquant.dequantize(packed, name, width=32)


@every_format
@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
def test_bytes_of_another_width(name: str, make: Any) -> None:
    n_bytes = get_format(name).n_bytes(64)
    dtype = np.uint8 if make is np.zeros else torch.uint8
    with pytest.raises(FormatError, match=f"take {n_bytes} bytes, but the last axis has {n_bytes - 2}"):
        kvquant.dequantize(make((3, n_bytes - 2), dtype=dtype), name, width=64)
    with pytest.raises(FormatError, match="has no"):
        kvquant.dequantize(make((), dtype=dtype), name, width=64)


@every_format
def test_empty_arrays_keep_their_shape(name: str) -> None:
    fmt = get_format(name)
    for lead in ((0,), (3, 0), (0, 2)):
        packed = fmt.quantize(np.zeros((*lead, 64), np.float32))
        assert packed.shape == (*lead, fmt.n_bytes(64)) and packed.dtype == np.uint8
        assert fmt.dequantize(packed, 64).shape == (*lead, 64)
        tensor = fmt.quantize(torch.zeros(*lead, 64))
        assert tensor.shape == packed.shape and fmt.dequantize(tensor, 64).shape == (*lead, 64)
    assert fmt.quantize(np.zeros((2, 0), np.float32)).shape == (2, 0)


@every_format
def test_other_float_dtypes_are_rounded_to_float32(name: str) -> None:
    fmt = get_format(name)
    x = np.random.default_rng(0).standard_normal((5, 64))
    expected = fmt.quantize(x.astype(np.float32))
    assert (fmt.quantize(x) == expected).all()
    assert (fmt.quantize(x.astype(np.longdouble)) == expected).all()
    assert (fmt.quantize(x.tolist()) == expected).all()
    assert (fmt.quantize(torch.from_numpy(x)).numpy() == expected).all()
    for dtype in (torch.float16, torch.bfloat16):
        narrow = torch.from_numpy(x).to(dtype)
        assert (fmt.quantize(narrow) == fmt.quantize(narrow.float())).all()


def test_a_tensor_with_gradient_is_packed_without_it() -> None:
    packed = kvquant.quantize(torch.ones(32, requires_grad=True), "q8_0")
    assert not packed.requires_grad


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_are_one_or_more(threads: int) -> None:
    with pytest.raises(FormatError, match=f"threads is {threads}; give 1 or more"):
        kvquant.quantize(np.zeros(32, np.float32), "q8_0", threads=threads)
    with pytest.raises(FormatError, match=f"threads is {threads}; give 1 or more"):
        kvquant.dequantize(np.zeros(34, np.uint8), "q8_0", width=32, threads=threads)


def test_torch_brings_its_own_threads() -> None:
    with pytest.raises(FormatError, match="threads is 2, but Torch has its own"):
        kvquant.quantize(torch.zeros(32), "q8_0", threads=2)


def test_a_float64_past_float32_is_an_infinity() -> None:
    packed = kvquant.quantize(np.full(32, 1e300), "q8_0")
    assert np.isnan(kvquant.dequantize(packed, "q8_0", width=32)).all()


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "float64"])
@every_format
def test_temporary_memory_is_bounded(name: str, layout: str) -> None:
    n_blocks = 1 << (15 if name.startswith("iq4") else 17)  # 4 or 16 MiB of float32
    x = (
        np.zeros((32, n_blocks), np.float32).T
        if layout == "transposed"
        else np.zeros((n_blocks, 32), np.float32)
    )
    if layout == "float64":
        x = x.astype(np.float64)
    checks.check_temporary_memory(get_format(name), x)


def test_only_iq4_nl_is_written_otherwise_into_a_cache() -> None:
    changed = {name for name in format_names() if cache_format(name) is not get_format(name)}
    assert changed == {"iq4_nl"}
    assert cache_format("iq4_nl").name == "iq4_nl_cache"
