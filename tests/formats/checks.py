"""What every ggml format must do. Each check takes a format and raises AssertionError: see test_meta.py.

A format here is anything with `name`, `quantize(x)` and `dequantize(packed, width)`.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from formats.coded_layouts import PartLayout
from formats.layouts import (
    GRIDS,
    HALF_SUBNORMAL_F16,
    HALF_ULP_F16,
    LEVELS,
    error_bound,
    exact_scale,
    scale_is_usable,
    stored_half,
)

Float32Array = npt.NDArray[np.float32]
Uint8Array = npt.NDArray[np.uint8]


class Packs(Protocol):
    """The part of a format the checks use."""

    name: str

    def quantize(self, x: Any) -> Any: ...
    def dequantize(self, packed: Any, width: int) -> Any: ...


def check_temporary_memory(fmt: Packs, x: npt.NDArray[Any]) -> None:
    """Packing and unpacking x (n, width) takes less than 8 MiB beside x and what comes of it."""
    tracemalloc.start()
    packed = fmt.quantize(x)
    encoding = tracemalloc.get_traced_memory()[1] - packed.nbytes
    tracemalloc.reset_peak()
    values = fmt.dequantize(packed, x.shape[1])
    decoding = tracemalloc.get_traced_memory()[1] - packed.nbytes - values.nbytes
    tracemalloc.stop()
    assert max(encoding, decoding) < 8 << 20, f"{encoding} bytes to encode, {decoding} to decode"


def check_same_bytes(got: Uint8Array, expected: Uint8Array, x: Float32Array, what: str) -> None:
    """Rows of packed bytes are equal; the message shows the first block that is not."""
    assert got.dtype == np.uint8, f"{what}: {got.dtype}, not uint8"
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, not {expected.shape}"
    wrong = np.flatnonzero((got != expected).any(axis=1))
    if wrong.size:
        at = wrong[0]
        raise AssertionError(
            f"{what}: {wrong.size} of {len(got)} blocks differ; block {at}\n  x    {x[at].tolist()}\n"
            f"  got  {got[at].tobytes().hex(' ')}\n  want {expected[at].tobytes().hex(' ')}"
        )


def check_same_values(got: Float32Array, expected: Float32Array, what: str) -> None:
    """Values are equal bit for bit, the sign of zero included; a NaN equals any NaN."""
    assert got.dtype == np.float32, f"{what}: {got.dtype}, not float32"
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, not {expected.shape}"
    wrong = (got.view(np.uint32) != expected.view(np.uint32)) & ~(np.isnan(got) & np.isnan(expected))
    assert not wrong.any(), (
        f"{what}: {wrong.sum()} values differ, first {got[wrong][0]!r} for {expected[wrong][0]!r}"
    )


def check_idempotent(fmt: Packs, x: Float32Array) -> None:
    """Packing what was unpacked gives the same bytes, as far as the format promises it (docs/formats.md).

    Promised where the stored scale is finite and not zero; with a stored minimum only where it is at most
    2^15 scales, and a minimum of -0 comes back as +0. Where the scale is zero the values still repeat.
    """
    packed = fmt.quantize(x)
    values = fmt.dequantize(packed, 32)
    again = fmt.quantize(values)
    usable = scale_is_usable(fmt.name, packed)
    if fmt.name in GRIDS and GRIDS[fmt.name].has_minimum:
        low = stored_half(packed, 2)[:, 0]
        usable &= np.abs(low) <= 2.0**15 * np.abs(stored_half(packed, 0)[:, 0])
        packed = packed.copy()
        packed[low == 0, 2:4] = 0
    check_same_bytes(again[usable], packed[usable], x[usable], f"{fmt.name} of its own output")
    vanished = np.flatnonzero((stored_half(packed, 0)[:, 0] == 0) & np.isfinite(values).all(axis=1))
    twice = fmt.dequantize(again, 32)
    np.testing.assert_array_equal(
        twice[vanished], values[vanished], f"{fmt.name}: values of a zero scale moved"
    )


def check_refit_is_close(fmt: Packs, x: Float32Array) -> None:
    """What holds of iq4_nl's search in place of idempotence: a block that uses level -127 hardly moves again.

    Its codes are then among those the search tries, and fit perfectly, so what wins fits to within float32
    rounding and only the fp16 scale may differ.
    """
    packed = fmt.quantize(x)
    uses_peak = scale_is_usable(fmt.name, packed) & np.any(
        (packed[:, 2:] & 15 == 0) | (packed[:, 2:] >> 4 == 0), axis=1
    )
    values = fmt.dequantize(packed[uses_peak], 32)
    again = fmt.dequantize(fmt.quantize(values), 32).astype(np.float64)
    before = values.astype(np.float64)
    moved = np.sqrt((before**2 * (again - before) ** 2).sum(axis=1) / (before**4).sum(axis=1))
    assert (moved <= 2.0**-9).all(), f"{fmt.name}: a fitted block moved by {moved.max():.2e} of itself"


def check_error_bound(fmt: Packs, x: Float32Array) -> None:
    """No value is further off than `error_bound`, where scale and minimum fit in fp16; nor is the scale."""
    packed = fmt.quantize(x)
    finite = np.isfinite(stored_half(packed, 0)[:, 0])
    if GRIDS[fmt.name].has_minimum:
        finite &= np.isfinite(stored_half(packed, 2)[:, 0])
    packed, exact = packed[finite], x[finite].astype(np.float64)
    error = np.abs(fmt.dequantize(packed, 32) - exact)
    bound = error_bound(fmt.name, exact, packed)
    assert (error <= bound).all(), f"{fmt.name}: error {(error / bound).max():.6f} times the bound"
    scale, stored = exact_scale(GRIDS[fmt.name], exact), stored_half(packed, 0)
    rounding = np.maximum(HALF_ULP_F16 * np.abs(scale), HALF_SUBNORMAL_F16) * (1 + 2.0**-12)
    off = np.abs(np.abs(stored) - np.abs(scale))
    assert (off <= rounding).all(), f"{fmt.name}: the stored scale is {off.max()} off"


def check_coded_error(fmt: Packs, x: Float32Array, parts: Sequence[PartLayout]) -> None:
    """Every value has the magnitude that one of the tries brings it nearest to; the scale keeps the norm.

    Up to the rounding of scales to fp16 and of steps to float32, where scales are normal and finite.
    """
    packed, place = fmt.quantize(x), 0
    values = fmt.dequantize(packed, x.shape[1]).astype(np.float64)
    for part in parts:
        exact, back = (rows[:, place : place + part.n] for rows in (x.astype(np.float64), values))
        place += part.n
        scale, norm = stored_half(packed, part.at), np.linalg.norm(exact, axis=1, keepdims=True)
        usable = ((scale >= 2.0**-14) & (scale < 65504))[:, 0]
        exact, back, scale, norm = exact[usable], back[usable], scale[usable], norm[usable]
        levels = np.abs(back / scale)
        off = np.abs(scale * np.linalg.norm(levels, axis=1, keepdims=True) / norm - 1)
        assert (off <= HALF_ULP_F16 * 1.001).all(), f"{fmt.name}: a scale is {off.max():.2e} off"
        assert (np.signbit(back) == np.signbit(exact)).all(), f"{fmt.name}: a sign is lost"
        anchor = np.abs(exact).max(axis=1, keepdims=True) if part.by_peak else norm
        grid = np.array(part.magnitudes, np.float64)
        nearest = np.zeros(len(exact), bool)
        for steps in part.tries:
            y = np.abs(exact) / anchor * steps
            best = np.abs(y[..., None] - grid).min(axis=2)
            nearest |= (np.abs(y - levels) <= best + 2.0**-21 * y).all(axis=1)
        assert nearest.all(), f"{fmt.name}: {np.sum(~nearest)} blocks have codes that no try gives"


def check_coded_round_trip(fmt: Packs, x: Float32Array, parts: Sequence[PartLayout]) -> None:
    """Packing what was unpacked gives the same bytes, where no scale is zero."""
    packed = fmt.quantize(x)
    again = fmt.quantize(fmt.dequantize(packed, x.shape[1]))
    usable = np.all([stored_half(packed, part.at)[:, 0] > 0 for part in parts], axis=0)
    check_same_bytes(again[usable], packed[usable], x[usable], f"{fmt.name} of its own output")


def check_level_bound(fmt: Packs, x: Float32Array) -> None:
    """iq4_nl: the error, weighted by x², is at most 14/127 of the peak, plus the fp16 scale's rounding.

    The first guess already achieves that: no value lies further than 14 steps from a level. Later guesses
    and the fit only lower it.
    """
    packed = fmt.quantize(x)
    peak = np.abs(x).astype(np.float64).max(axis=1)
    sane = scale_is_usable(fmt.name, packed) & (peak > 1e-8) & (peak < 1e8)  # squares and cubes stay in range
    packed, exact, peak = packed[sane], x[sane].astype(np.float64), peak[sane]
    error = fmt.dequantize(packed, 32) - exact
    rms = np.sqrt((exact**2 * error**2).sum(axis=1) / (exact**2).sum(axis=1))
    stored = np.abs(stored_half(packed, 0)[:, 0])
    rounding = 127 * np.maximum(HALF_ULP_F16 * stored, HALF_SUBNORMAL_F16) * 1.01
    assert (rms <= 14 / 127 * peak * (1 + 1e-5) + rounding).all(), (
        f"{fmt.name}: {(rms / peak).max():.4f} of the peak"
    )


def check_nearest_level(fmt: Packs, x: Float32Array) -> None:
    """iq4_nl's search: every value gets the level nearest to it, up to the fp16 rounding of the scale."""
    packed = fmt.quantize(x)
    usable = scale_is_usable(fmt.name, packed)
    packed, exact = packed[usable], x[usable].astype(np.float64)
    scale = stored_half(packed, 0)
    error = np.abs(fmt.dequantize(packed, 32) - exact)
    best = np.abs(exact[..., None] - scale[..., None] * LEVELS).min(axis=2)
    rounding = 2 * 127 * np.maximum(HALF_ULP_F16 * np.abs(scale), HALF_SUBNORMAL_F16) * 1.01
    steps_off = np.abs(exact) * 2.0**-20
    assert (error <= best + rounding + steps_off).all(), f"{fmt.name}: a level further away than need be"


def check_powers_of_two(
    fmt: Packs, x: Float32Array, exponent: int, halves: Sequence[int] | None = None
) -> None:
    """Scaling by 2^exponent scales what comes back, exactly, where the stored fp16 numbers stay normal.

    halves: the bytes of a block where they are, those of ggml's formats when None.
    """
    factor = np.float32(2.0**exponent)
    packed, scaled = fmt.quantize(x), fmt.quantize(x * factor)
    steady = np.ones(len(x), bool)
    if fmt.name not in ("f32", "bf16"):
        for at in _half_positions(fmt.name) if halves is None else halves:
            for rows in (packed, scaled):
                half = np.abs(stored_half(rows, at)[:, 0])
                steady &= (half == 0) | ((half >= 2.0**-14) & np.isfinite(half))
    before, after = fmt.dequantize(packed, x.shape[1]) * factor, fmt.dequantize(scaled, x.shape[1])
    np.testing.assert_array_equal(
        after[steady], before[steady], f"{fmt.name}: not equivariant to 2^{exponent}"
    )


def _half_positions(name: str) -> Sequence[int]:
    if name == "f16":
        return range(0, 64, 2)
    return (0, 2) if name in GRIDS and GRIDS[name].has_minimum else (0,)


def check_sign_symmetry(fmt: Packs, x: Float32Array) -> None:
    """Negating the values negates what comes back (formats with a minimum do not promise this)."""
    before, after = (fmt.dequantize(fmt.quantize(values), x.shape[1]) for values in (x, -x))
    np.testing.assert_array_equal(after, -before, f"{fmt.name}: not symmetric in sign")


def check_blocks_are_independent(fmt: Packs, x: Float32Array, order: Sequence[int]) -> None:
    """Reordering blocks reorders their bytes, and a row's bytes are those of its blocks side by side."""
    packed = fmt.quantize(x)
    check_same_bytes(
        fmt.quantize(x[list(order)]), packed[list(order)], x[list(order)], f"{fmt.name} reordered"
    )
    row = fmt.quantize(x.reshape(1, -1))
    assert row.tobytes() == packed.tobytes(), f"{fmt.name}: one long row packs differently from its blocks"


def check_layouts(fmt: Packs, x: Float32Array, lead: tuple[int, ...]) -> None:
    """Leading shape, strides, byte order and float dtype change nothing but the shape.

    lead: the leading shape that ``x`` (n, block) is repeated into.
    """
    full = (
        np.resize(x, (*lead, x.size))
        if np.prod(lead, dtype=int)
        else np.zeros((*lead, x.shape[1]), np.float32)
    )
    packed = fmt.quantize(full)
    width = full.shape[-1]
    assert packed.shape[:-1] == full.shape[:-1], f"{fmt.name}: {full.shape} became {packed.shape}"
    assert packed.flags.c_contiguous, f"{fmt.name}: the bytes are not contiguous"
    for how, same in _spellings(full).items():
        got = fmt.quantize(same)
        assert got.shape == packed.shape and got.tobytes() == packed.tobytes(), (
            f"{fmt.name}: {how} input differs"
        )
    values = fmt.dequantize(packed, width)
    assert values.shape == full.shape, f"{fmt.name}: {packed.shape} became {values.shape}"
    for how, same in _spellings(packed).items():
        if same.dtype == np.uint8:
            got = fmt.dequantize(same, width)
            assert got.tobytes() == values.tobytes(), f"{fmt.name}: {how} bytes differ"
    halves = full.astype(np.float16)
    assert fmt.quantize(halves).tobytes() == fmt.quantize(halves.astype(np.float32)).tobytes(), (
        f"{fmt.name}: float16"
    )


def _spellings(x: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Return the same values in other memory layouts and, for floats, in wider and byte-swapped dtypes."""
    strided = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    strided[..., ::2] = x
    raw = np.zeros(x.nbytes + 1, np.uint8)
    odd = raw[1:].view(x.dtype).reshape(x.shape)
    odd[...] = x
    fixed = x.copy()
    fixed.flags.writeable = False
    spellings = {
        "read-only": fixed,
        "Fortran order": np.asfortranarray(x),
        "strided": strided[..., ::2],
        "reversed": x[..., ::-1].copy()[..., ::-1],
        "unaligned": odd,
    }
    if x.dtype == np.float32:
        spellings |= {"float64": x.astype(np.float64), "byte-swapped": x.astype(x.dtype.newbyteorder())}
    return spellings


def check_input_is_kept(fmt: Packs, x: Float32Array) -> None:
    """Neither direction writes to what it was given."""
    kept = x.copy()
    packed = fmt.quantize(x)
    assert x.tobytes() == kept.tobytes(), f"{fmt.name}: quantize changed its input"
    packed_kept = packed.copy()
    fmt.dequantize(packed, x.shape[1])
    assert packed.tobytes() == packed_kept.tobytes(), f"{fmt.name}: dequantize changed its input"


def check_torch_equals_numpy(fmt: Packs, x: Float32Array) -> None:
    """Torch gives NumPy's bytes and values, for contiguous and for transposed tensors."""
    packed = fmt.quantize(x)
    tensor = torch.from_numpy(x.copy())
    for how, same in {"contiguous": tensor, "transposed": tensor.T.contiguous().T}.items():
        got = fmt.quantize(same)
        assert isinstance(got, torch.Tensor), f"{fmt.name}: a tensor gave {type(got).__name__}"
        check_same_bytes(got.numpy(), packed, x, f"{fmt.name} in Torch, {how}")
    width = x.shape[1]
    values = fmt.dequantize(torch.from_numpy(packed.copy()), width)
    check_same_values(values.numpy(), fmt.dequantize(packed, width), f"{fmt.name} read in Torch")


def check_broken_block(fmt: Packs, x: Float32Array, block: int, place: int, value: float) -> None:
    """A NaN or infinity makes its whole block NaN, and its block only."""
    damaged = x.copy()
    damaged[block, place] = value
    packed = fmt.quantize(damaged)
    values = fmt.dequantize(packed, x.shape[1])
    assert np.isnan(values[block]).all(), f"{fmt.name}: a block with {value} decodes to {values[block]}"
    others = np.arange(len(x)) != block
    check_same_bytes(packed[others], fmt.quantize(x)[others], x[others], f"{fmt.name} beside a broken block")


def check_error_falls_with_bits(fmts: Sequence[Packs], x: Float32Array) -> None:
    """The mean squared error over ``x`` falls from each format to the next."""
    restored = [fmt.dequantize(fmt.quantize(x), x.shape[1]) for fmt in fmts]
    errors = [float(np.mean((values - x.astype(np.float64)) ** 2)) for values in restored]
    names = [fmt.name for fmt in fmts]
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == len(errors), f"{names}: {errors}"
