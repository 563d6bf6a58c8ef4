"""TurboQuant mse and prod as formats: distortion, bias, bytes, edge cases, names."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.checks import check_error_falls_with_bits, check_input_is_kept, check_layouts
from formats.turboquant.checks import (
    check_distortion,
    check_inner_products,
    check_layout,
    check_lengths_kept,
    check_power_of_two_scaling,
    check_rows_independent,
    unit_vectors,
)
from formats.turboquant.strategies import WIDTHS, finite_rows, format_names, ordinary_rows
from kvquant.errors import FormatError
from kvquant.formats.registry import format_names as registered_names
from kvquant.formats.registry import get_format
from kvquant.formats.turboquant.base import TurboQuant
from kvquant.formats.turboquant.codebook import lloyd_max
from kvquant.formats.turboquant.mse import TurboQuantMSE
from kvquant.formats.turboquant.outliers import OutlierSplit, loudest_channels
from kvquant.formats.turboquant.prod import TurboQuantProd

# -- distortion and bias
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", ["hadamard", "haar"])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_distortion_is_the_exact_one(bits: int, width: int, rotation: Any) -> None:
    fmt = TurboQuantMSE(bits, rotation=rotation)
    check_distortion(fmt, unit_vectors(4000, width), lloyd_max(width, bits).distortion, 0.02)


@pytest.mark.parametrize("width", [72, 80, 96, 101, 112, 192])
def test_distortion_at_widths_that_are_no_power_of_two(width: int) -> None:
    check_distortion(TurboQuantMSE(3), unit_vectors(4000, width), lloyd_max(width, 3).distortion, 0.02)


def test_check_distortion_notices_one_bit_less() -> None:
    with pytest.raises(AssertionError, match="distortion"):
        check_distortion(TurboQuantMSE(3), unit_vectors(500, 64), lloyd_max(64, 4).distortion, 0.02)


@pytest.mark.parametrize("rotation", ["hadamard", "haar"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_prod_is_unbiased_with_the_theorys_variance(bits: int, rotation: Any) -> None:
    width = 64
    variance = lloyd_max(width, bits - 1).distortion * (np.pi / 2 - 1 / width) / width
    formats = [TurboQuantProd(bits, rotation=rotation, norm_type="f32", seed=seed) for seed in range(40)]
    check_inner_products(formats, width, variance)


def test_check_inner_products_notices_the_bias_of_mse_and_a_wrong_scale() -> None:
    width = 64
    mse_variance = lloyd_max(width, 2).distortion / width
    with pytest.raises(AssertionError, match="on average"):
        check_inner_products([TurboQuantMSE(2, seed=seed) for seed in range(20)], width, mse_variance)

    @dataclass(frozen=True)
    class LoudSketch(TurboQuantProd):
        def _decoded(self, code_bytes: Any, norms: Any, width: int) -> Any:
            return super()._decoded(code_bytes, [norms[0], norms[1] * 1.2], width)

    variance = lloyd_max(width, 2).distortion * (np.pi / 2 - 1 / width) / width
    with pytest.raises(AssertionError):
        check_inner_products([LoudSketch(3, seed=seed) for seed in range(20)], width, variance)


@pytest.mark.parametrize("make", [TurboQuantMSE, TurboQuantProd])
def test_more_bits_less_error(make: type[TurboQuant]) -> None:
    formats = [make(bits, norm_type="f32") for bits in range(make.min_bits, 9)]
    check_error_falls_with_bits(formats, unit_vectors(200, 96))


# -- bytes
# ----------------------------------------------------------------------------------------------------


@given(data=st.data(), name=format_names(), width=st.sampled_from(WIDTHS))
def test_rows_are_packed_on_their_own(data: st.DataObject, name: str, width: int) -> None:
    check_rows_independent(get_format(name), data.draw(finite_rows(width)))


@pytest.mark.parametrize("name", ["tq_mse_4b", "tq_mse_3b-nc-qr", "tq_prod_3b", "tq_mse_2b-xf0"])
@pytest.mark.parametrize("lead", [(), (0,), (5,), (2, 0, 3), (2, 3, 1)])
def test_strides_shapes_and_dtypes_change_nothing(name: str, lead: tuple[int, ...]) -> None:
    x = unit_vectors(2, 32)
    check_layouts(get_format(name), x, lead)
    check_input_is_kept(get_format(name), x)


def test_check_rows_independent_notices_a_scale_shared_by_rows() -> None:
    @dataclass(frozen=True)
    class SharedLength(TurboQuantMSE):
        def _code(self, rotated: Any, norms: Any) -> Any:
            return super()._code(rotated, np.full_like(norms, norms.max()))

    with pytest.raises(AssertionError):
        check_rows_independent(SharedLength(4), unit_vectors(3, 64) * np.float32([[1], [2], [3]]))


@given(data=st.data(), name=format_names(), width=st.sampled_from(WIDTHS))
def test_bytes_are_as_documented(data: st.DataObject, name: str, width: int) -> None:
    fmt = get_format(name)
    assert isinstance(fmt, TurboQuant)
    packed = fmt.quantize(data.draw(ordinary_rows(width)))
    check_layout(fmt, packed, fmt.dequantize(packed, width))


def test_check_layout_notices_swapped_fields() -> None:
    fmt = TurboQuantMSE(4)
    packed = fmt.quantize(unit_vectors(2, 64))
    with pytest.raises(AssertionError, match="otherwise"):
        check_layout(fmt, np.roll(packed, 2, axis=1), fmt.dequantize(packed, 64))


@given(data=st.data(), name=format_names(), width=st.sampled_from(WIDTHS), exponent=st.integers(-6, 5))
def test_powers_of_two_pass_through(data: st.DataObject, name: str, width: int, exponent: int) -> None:
    check_power_of_two_scaling(get_format(name), data.draw(ordinary_rows(width)), exponent)


def test_check_power_of_two_scaling_notices_a_fixed_step() -> None:
    with pytest.raises(AssertionError):
        # A length that fp16 holds only as a subnormal lies on a fixed grid.
        check_power_of_two_scaling(TurboQuantMSE(4), unit_vectors(4, 64) * np.float32(3.3), -18)


@pytest.mark.parametrize(
    ("name", "width", "n_bytes"),
    [
        ("tq_mse_4b", 128, 64 + 2),
        ("tq_mse_4b-f32", 128, 64 + 4),
        ("tq_mse_3b", 80, 30 + 2),
        ("tq_mse_3b", 101, 38 + 2),
        ("tq_mse_1b", 3, 1 + 2),
        ("tq_prod_4b", 128, 48 + 16 + 4),
        ("tq_prod_3b-f32", 101, 26 + 13 + 8),
        ("tq_mse_2b-xffffffff", 128, (12 + 2) + (24 + 2)),
    ],
)
def test_bytes_of_a_row(name: str, width: int, n_bytes: int) -> None:
    fmt = get_format(name)
    assert fmt.n_bytes(width) == n_bytes
    assert fmt.bits_per_value(width) == 8 * n_bytes / width
    assert fmt.quantize(np.zeros((2, width), np.float32)).shape == (2, n_bytes)


# The encoding is part of the name: the same bytes on every machine, in every release. Only exactly rounded
# operations lie behind them, so a difference is a change of the format and needs a new name.
FROZEN = {
    "tq_mse_1b": "35acfc0cc9219ef2",
    "tq_mse_4b": "c2b8364697ee85b7",
    "tq_mse_3b-nc-f32-s7": "71f4e618ebd794d5",
    "tq_mse_8b": "53f196af984464a9",
}


@pytest.mark.parametrize("name", FROZEN)
def test_encoding_is_frozen(name: str) -> None:
    digest = hashlib.sha256()
    for width in (64, 80, 101, 128):
        values = np.arange(8 * width, dtype=np.int64) * 2654435761 % 4093 - 2046
        digest.update(get_format(name).quantize(values.reshape(8, width).astype(np.float32) / 64).tobytes())
    assert digest.hexdigest()[:16] == FROZEN[name]


# -- lengths and undefined input
# --------------------------------------------------------------------------------


@given(data=st.data(), bits=st.integers(1, 8), width=st.sampled_from(WIDTHS))
def test_norm_correction_keeps_lengths(data: st.DataObject, bits: int, width: int) -> None:
    fmt = TurboQuantMSE(bits, norm_type="f32", norm_correction=True)
    check_lengths_kept(fmt, data.draw(ordinary_rows(width)), 2e-6)


def test_check_lengths_kept_notices_plain_mse() -> None:
    with pytest.raises(AssertionError, match="length"):
        check_lengths_kept(TurboQuantMSE(2, norm_type="f32"), unit_vectors(10, 64), 2e-6)


@given(data=st.data(), name=format_names(), width=st.sampled_from(WIDTHS))
def test_finite_in_finite_out(data: st.DataObject, name: str, width: int) -> None:
    x = data.draw(finite_rows(width))
    fmt = get_format(name)
    assert np.isfinite(fmt.dequantize(fmt.quantize(x), width)).all()


@pytest.mark.parametrize(
    "name", ["tq_mse_4b", "tq_mse_2b-nc-f32", "tq_mse_3b-qr", "tq_prod_3b", "tq_mse_2b-xf0"]
)
def test_rows_without_a_direction(name: str) -> None:
    fmt, width = get_format(name), 64
    x = np.ones((6, width), np.float32)
    x[0] = 0.0
    x[1] = -0.0
    x[2, 5], x[3, 6], x[4, 7] = np.nan, np.inf, -np.inf
    restored = fmt.dequantize(fmt.quantize(x), width)
    np.testing.assert_array_equal(restored[:2], 0)
    spoiled = np.arange(4, 8) if isinstance(fmt, OutlierSplit) else np.arange(width)
    assert np.isnan(restored[2:5][:, spoiled]).all()
    np.testing.assert_array_equal(restored[5], fmt.dequantize(fmt.quantize(x[5]), width))
    assert np.isfinite(restored[5]).all()


def test_lengths_past_the_stored_range() -> None:
    direction = unit_vectors(1, 64)
    for norm_type, limit in (("f16", 65504.0), ("f32", 2.0**126)):
        fmt = TurboQuantMSE(4, norm_type=norm_type)
        restored = fmt.dequantize(fmt.quantize(direction * np.float32(2.0**127)), 64).astype(np.float64)
        assert np.linalg.norm(restored) == pytest.approx(limit, rel=0.02)
    # Below half of the least fp16 a length is stored as zero; fp32 keeps it.
    small = direction * np.float32(2.0**-27)
    for norm_type, kept in (("f16", False), ("f32", True)):
        fmt = TurboQuantMSE(4, norm_type=norm_type)
        assert fmt.dequantize(fmt.quantize(small), 64).any() == kept


@pytest.mark.parametrize(
    "x", [np.float32(1), np.zeros((2, 64), np.complex64), np.array(["a"]), np.zeros((3, 2), np.float32)]
)
def test_unusable_input_is_one_clear_error(x: Any) -> None:
    with pytest.raises(FormatError):
        get_format("tq_mse_4b").quantize(x)


def test_wrong_packed_length_is_an_error() -> None:
    with pytest.raises(FormatError, match="66"):
        get_format("tq_mse_4b").dequantize(np.zeros((2, 65), np.uint8), 128)


def test_no_rows() -> None:
    fmt = get_format("tq_prod_3b")
    packed = fmt.quantize(np.empty((0, 4, 64), np.float32))
    assert packed.shape == (0, 4, fmt.n_bytes(64))
    assert fmt.dequantize(packed, 64).shape == (0, 4, 64)


def test_temporary_memory_is_bounded() -> None:
    fmt = get_format("tq_mse_4b")
    x = np.ones((200_000, 128), np.float32)
    fmt.quantize(x[:10])
    tracemalloc.start()
    packed = fmt.quantize(x)
    peak = tracemalloc.get_traced_memory()[1] - packed.nbytes
    tracemalloc.stop()
    assert peak < 24 << 20, f"{peak / 2**20:.1f} MiB of temporaries for {x.nbytes / 2**20:.0f} MiB of input"


# -- outlier channels
# ---------------------------------------------------------------------------------------------


def test_two_and_a_half_bits_need_half_of_the_channels() -> None:
    def code_bits(n_outliers: int) -> float:
        fmt = OutlierSplit(TurboQuantMSE(2), tuple(range(n_outliers)))
        return fmt.bits_per_value(128) - 8 * 2 * 2 / 128  # two fp16 lengths

    assert code_bits(32) == 2.25  # the paper writes (32·3 + 96·2)/128 = 2.5
    assert code_bits(64) == 2.5


def test_loud_channels_in_the_finer_part_reduce_the_error() -> None:
    x = np.random.default_rng(0).standard_normal((500, 128)).astype(np.float32)
    loud = (3, 40, 41, 90, 127)
    x[:, loud] *= 20
    assert loudest_channels(x, 5) == loud

    def error(fmt: Any) -> float:
        return float(np.mean((x - fmt.dequantize(fmt.quantize(x), 128)) ** 2))

    split, plain = OutlierSplit(TurboQuantMSE(2), loud), TurboQuantMSE(2)
    assert error(split) < 0.5 * error(plain)
    assert error(OutlierSplit(TurboQuantMSE(2), (0, 1, 2, 4, 5))) > error(split)


def test_split_parts_are_independent_formats() -> None:
    x, channels = unit_vectors(5, 96), (1, 2, 3, 50, 95)
    fmt = OutlierSplit(TurboQuantProd(3), channels)
    others = [c for c in range(96) if c not in channels]
    packed, parts = fmt.quantize(x), (TurboQuantProd(4), TurboQuantProd(3))
    expected = np.concatenate((parts[0].quantize(x[:, channels]), parts[1].quantize(x[:, others])), axis=1)
    np.testing.assert_array_equal(packed, expected)
    assert get_format(fmt.name) == fmt


@pytest.mark.parametrize("channels", [(), (-1,), (3, 2), (2, 2)])
def test_outlier_channels_must_ascend(channels: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match="ascending"):
        OutlierSplit(TurboQuantMSE(2), channels)


def test_outlier_channels_must_fit() -> None:
    fmt = OutlierSplit(TurboQuantMSE(2), (10, 20, 63))
    assert fmt.n_bytes(64) > 0
    for width in (63, 5):
        with pytest.raises(FormatError, match="past the last"):
            fmt.n_bytes(width)
    with pytest.raises(FormatError, match="3 to 4096"):
        OutlierSplit(TurboQuantMSE(2), (0, 1)).n_bytes(64)
    for n_channels in (0, 64):
        with pytest.raises(FormatError, match="outlier channels"):
            loudest_channels(np.ones((4, 64)), n_channels)


# -- names
# ----------------------------------------------------------------------------------------------------


def test_plain_names_are_listed() -> None:
    expected = [f"tq_mse_{b}b" for b in range(1, 9)] + [f"tq_prod_{b}b" for b in range(2, 9)]
    assert [name for name in registered_names() if name.startswith("tq_")] == expected


@given(format_names())
def test_a_name_names_itself(name: str) -> None:
    assert get_format(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "tq_mse_0b",
        "tq_mse_9b",
        "tq_prod_1b",
        "tq_mse_4",
        "tq_mse_4b-",
        "tq_mse_4b-f32-qr",
        "tq_mse_4b-qr-qr",
        "tq_prod_4b-nc",
        "tq_mse_4b-s0",
        "tq_mse_4b-s01",
        "tq_mse_4b-s18446744073709551616",
        "tq_mse_4b-x0",
        "tq_mse_4b-x0f",
        "tq_mse_4b-xFF",
        "tq_mse_8b-xff",
        "tq_MSE_4b",
        "tq_mse_4b\n",
        "tq_",
    ],
)
def test_other_names_are_errors(name: str) -> None:
    with pytest.raises(FormatError):
        get_format(name)
