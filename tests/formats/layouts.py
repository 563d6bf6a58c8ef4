"""What each block format promises, restated from the C code, independent of the package's arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Uint8Array = npt.NDArray[np.uint8]

PLAIN = ("f32", "f16", "bf16")
BLOCK = ("q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1", "iq4_nl_cache")
GGML = (*PLAIN, *BLOCK)

LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64)

HALF_ULP_F16 = 2.0**-11  # relative to the number, at most
HALF_SUBNORMAL_F16 = 2.0**-25


@dataclass(frozen=True)
class Grid:
    """An evenly spaced block format: values (q - zero) * scale + minimum for q = 0 … top."""

    top: int
    zero: int
    has_minimum: bool
    peak_code: (
        float  # what the block's peak is in steps of the scale; the range's steps where it has a minimum
    )


GRIDS = {
    "q8_0": Grid(254, 127, False, 127),
    "q4_0": Grid(15, 8, False, -8),
    "q5_0": Grid(31, 16, False, -16),
    "q4_1": Grid(15, 0, True, 15),
    "q5_1": Grid(31, 0, True, 31),
}


def stored_half(packed: Uint8Array, at: int) -> Float64Array:
    """Return the fp16 at byte ``at`` of every block of ``packed`` (n, block_bytes), as float64 (n, 1)."""
    return np.ascontiguousarray(packed[:, at : at + 2]).view("<f2").astype(np.float64)


def exact_scale(grid: Grid, x: Float64Array) -> Float64Array:
    """Return the scale of every block of ``x`` (n, 32) before any rounding, signed as C signs it; (n, 1)."""
    if grid.has_minimum:
        return (x.max(axis=1, keepdims=True) - x.min(axis=1, keepdims=True)) / grid.peak_code
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    return (np.abs(peak) if grid.peak_code == 127 else peak) / grid.peak_code


def error_bound(name: str, x: Float64Array, packed: Uint8Array) -> Float64Array:
    """Return the most by which each value may come back wrong, given the scale that was stored; (n, 32).

    Half a step; for the asymmetric ranges -8 … 7 and -16 … 15 the whole distance to the end beyond it; plus
    what rounding the scale to fp16 costs, |q| steps of |D - d|; plus the rounding of the minimum; plus
    float32 rounding.
    """
    grid = GRIDS[name]
    scale, stored = exact_scale(grid, x), stored_half(packed, 0)
    low = x.min(axis=1, keepdims=True) if grid.has_minimum else np.zeros_like(scale)
    stored_low = stored_half(packed, 2) if grid.has_minimum else low
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale == 0, 0, (x - low) / scale)
    beyond = np.maximum(0.5, steps - (grid.top - grid.zero))
    rounding = 2.0**-19 * np.abs(scale) * max(grid.top, 32) / 16 + 2.0**-22 * (np.abs(x) + np.abs(stored_low))
    return (
        beyond * np.abs(scale)
        + (np.abs(steps) + 0.5) * np.abs(stored - scale)
        + np.abs(stored_low - low)
        + rounding
        + 2.0**-149
    )


def scale_is_usable(name: str, packed: Uint8Array) -> npt.NDArray[np.bool_]:
    """Return which blocks (n,) stored a finite scale other than zero, and a finite minimum if any."""
    scale = stored_half(packed, 0)[:, 0]
    usable = np.isfinite(scale) & (scale != 0)
    if name in GRIDS and GRIDS[name].has_minimum:
        usable &= np.isfinite(stored_half(packed, 2)[:, 0])
    return usable
