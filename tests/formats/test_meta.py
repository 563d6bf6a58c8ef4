"""Every check in checks.py fails on a format that is broken in just the way the check is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from formats import checks
from formats.layouts import LEVELS
from kvquant.formats.base import Format
from kvquant.formats.registry import get_format

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.standard_normal((16, 32)).astype(np.float32)
OFFSET = NORMAL + np.float32(1)


@dataclass
class Broken:
    """A real format with one direction, or both, replaced; the replacement gets the real format first."""

    real: Format
    encode: Callable[[Format, Any], Any] | None = None
    decode: Callable[[Format, Any, int], Any] | None = None

    @property
    def name(self) -> str:
        return self.real.name

    def quantize(self, x: Any) -> Any:
        return self.encode(self.real, x) if self.encode else self.real.quantize(x)

    def dequantize(self, packed: Any, width: int) -> Any:
        return self.decode(self.real, packed, width) if self.decode else self.real.dequantize(packed, width)


def broken(
    name: str,
    encode: Callable[[Format, Any], Any] | None = None,
    decode: Callable[[Format, Any, int], Any] | None = None,
) -> Broken:
    return Broken(get_format(name), encode, decode)


def fails(check: Callable[..., None], fmt: Any, *arguments: Any) -> None:
    """The check passes on the real format and fails on the broken one."""
    check(fmt.real, *arguments)
    with pytest.raises(AssertionError):
        check(fmt, *arguments)


def test_same_bytes() -> None:
    packed = get_format("q8_0").quantize(NORMAL)
    checks.check_same_bytes(packed, packed.copy(), NORMAL, "q8_0")
    other = packed.copy()
    other[3, 7] ^= 1
    with pytest.raises(AssertionError, match="1 of 16 blocks differ; block 3"):
        checks.check_same_bytes(other, packed, NORMAL, "q8_0")


def test_same_values() -> None:
    zero, minus_zero = np.zeros(1, np.float32), np.float32([-0.0])
    checks.check_same_values(np.float32([np.nan, 1]), np.float32([-np.nan, 1]), "values")
    with pytest.raises(AssertionError, match="1 values differ"):
        checks.check_same_values(zero, minus_zero, "values")


def test_temporary_memory() -> None:
    def wasteful(real: Format, x: Any) -> Any:
        return real.quantize(np.stack([x] * 8)[0])

    fails(checks.check_temporary_memory, broken("q8_0", encode=wasteful), np.zeros((1 << 14, 32), np.float32))


def test_idempotent() -> None:
    # Truncating instead of rounding lets the values shrink with every trip.
    shrinking = broken(
        "q8_0", decode=lambda real, packed, width: real.dequantize(packed, width) * np.float32(0.999)
    )
    fails(checks.check_idempotent, shrinking, NORMAL)
    vanishing = np.full((1, 32), 1e-9, np.float32)
    drifting = broken(
        "q8_0", decode=lambda real, packed, width: real.dequantize(packed, width) + np.float32(1e-3)
    )
    fails(checks.check_idempotent, drifting, vanishing)
    fails(checks.check_idempotent, broken("q4_1", decode=drifting.decode), OFFSET)


def test_refit() -> None:
    worse = broken(
        "iq4_nl", decode=lambda real, packed, width: real.dequantize(packed, width) * np.float32(1.01)
    )
    fails(checks.check_refit_is_close, worse, NORMAL)


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q5_0", "q4_1", "q5_1"])
def test_error_bound(name: str) -> None:
    def next_code(real: Format, x: Any) -> Any:
        packed = real.quantize(x)
        packed[:, -1] ^= 3
        return packed

    fails(checks.check_error_bound, broken(name, encode=next_code), NORMAL)

    def coarse_scale(real: Format, x: Any) -> Any:
        packed = real.quantize(x)
        packed[:, 0] ^= 4
        return packed

    fails(checks.check_error_bound, broken(name, encode=coarse_scale), NORMAL)


def test_level_bounds() -> None:
    def other_level(real: Format, x: Any) -> Any:
        packed = real.quantize(x)
        packed[:, 2:] ^= 0x22
        return packed

    fails(checks.check_level_bound, broken("iq4_nl", encode=other_level), NORMAL)

    def one_level_up(real: Format, x: Any) -> Any:
        packed = real.quantize(x)
        packed[0, 2] ^= 1
        return packed

    fails(checks.check_nearest_level, broken("iq4_nl", encode=one_level_up), NORMAL)
    # Where the level is the second nearest by a hair, the check must stay quiet: that is the fp16 scale.
    scale = np.float32(1.0)
    on_levels = (LEVELS[RANDOM.integers(0, 16, (4, 32))] * scale).astype(np.float32)
    checks.check_nearest_level(get_format("iq4_nl"), on_levels)


def test_powers_of_two() -> None:
    fixed_floor = broken("q4_0", encode=lambda real, x: real.quantize(x + np.float32(0.3)))
    fails(checks.check_powers_of_two, fixed_floor, NORMAL, 3)
    fails(checks.check_powers_of_two, broken("f16", encode=fixed_floor.encode), NORMAL, -2)


def test_sign_symmetry() -> None:
    def round_up(real: Format, x: Any) -> Any:
        return real.quantize(np.where(x < 0, x * np.float32(0.99), x))

    fails(checks.check_sign_symmetry, broken("q8_0", encode=round_up), NORMAL)


def test_blocks_are_independent() -> None:
    def shared_scale(real: Format, x: Any) -> Any:
        packed = real.quantize(x)
        return np.concatenate([packed[..., -34:][..., :2], packed[..., 2:]], axis=-1)

    def first_scale_everywhere(real: Format, x: Any) -> Any:
        packed = real.quantize(x)
        packed[:, :2] = packed[0, :2]
        return packed

    order = list(range(16))[::-1]
    fails(checks.check_blocks_are_independent, broken("q8_0", encode=first_scale_everywhere), NORMAL, order)
    fails(checks.check_blocks_are_independent, broken("q8_0", encode=shared_scale), NORMAL, range(16))


@pytest.mark.parametrize(
    "encode",
    [
        lambda real, x: real.quantize(
            np.frombuffer(x.tobytes(), np.float32).reshape(x.shape) if x.itemsize == 4 else x
        ),
        lambda real, x: real.quantize(x.astype(np.float16) if x.dtype == np.float64 else x),
        lambda real, x: real.quantize(x).reshape(-1, real.n_bytes(x.shape[-1])),
        lambda real, x: np.asfortranarray(real.quantize(x)),
    ],
    ids=["ignores byte order", "narrows float64", "flattens", "Fortran result"],
)
def test_layouts(encode: Callable[[Format, Any], Any]) -> None:
    fails(checks.check_layouts, broken("q8_0", encode=encode), NORMAL, (2, 3))


def test_layouts_of_bytes() -> None:
    def as_if_contiguous(real: Format, packed: Any, width: int) -> Any:
        rows = np.lib.stride_tricks.as_strided(packed, packed.shape, _c_strides(packed.shape))
        return real.dequantize(rows, width)

    fails(checks.check_layouts, broken("q8_0", decode=as_if_contiguous), NORMAL, (2, 3))


def _c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def test_input_is_kept() -> None:
    def clobber(real: Format, x: Any) -> Any:
        packed = real.quantize(x)
        x *= np.float32(2)
        return packed

    def clobber_bytes(real: Format, packed: Any, width: int) -> Any:
        values = real.dequantize(packed, width)
        packed ^= 8
        return values

    checks.check_input_is_kept(get_format("q4_0"), NORMAL)
    for fmt in (broken("q4_0", encode=clobber), broken("q4_0", decode=clobber_bytes)):
        with pytest.raises(AssertionError, match="changed its input"):
            checks.check_input_is_kept(fmt, NORMAL.copy())


def test_torch_equals_numpy() -> None:
    def rounds_otherwise(real: Format, x: Any) -> Any:
        return real.quantize(x if isinstance(x, np.ndarray) else x * 1.001)

    def numpy_out(real: Format, x: Any) -> Any:
        return real.quantize(np.asarray(x))

    def transposed_wrongly(real: Format, x: Any) -> Any:
        return real.quantize(x if isinstance(x, np.ndarray) or x.is_contiguous() else x.T.reshape(x.shape))

    for encode in (rounds_otherwise, numpy_out, transposed_wrongly):
        fails(checks.check_torch_equals_numpy, broken("q8_0", encode=encode), NORMAL)
    flushed = broken(
        "f16",
        decode=lambda real, packed, width: (
            real.dequantize(packed, width)
            if isinstance(packed, np.ndarray)
            else real.dequantize(packed, width) * 0
        ),
    )
    fails(checks.check_torch_equals_numpy, flushed, NORMAL)


def test_broken_block() -> None:
    hidden = broken("q4_0", encode=lambda real, x: real.quantize(np.nan_to_num(x, posinf=0, neginf=0)))
    fails(checks.check_broken_block, hidden, NORMAL, 3, 5, np.nan)

    def spreads(real: Format, x: Any) -> Any:
        return real.quantize(x if np.isfinite(x).all() else np.full_like(x, np.nan))

    fails(checks.check_broken_block, broken("q4_0", encode=spreads), NORMAL, 3, 5, np.inf)


def test_error_falls_with_bits() -> None:
    names = ["q4_0", "q5_0", "q8_0"]
    checks.check_error_falls_with_bits([get_format(name) for name in names], NORMAL)
    with pytest.raises(AssertionError):
        checks.check_error_falls_with_bits([get_format(name) for name in ["q5_0", "q4_0", "q8_0"]], NORMAL)
    with pytest.raises(AssertionError):
        checks.check_error_falls_with_bits([get_format("q4_0")] * 2, NORMAL)
