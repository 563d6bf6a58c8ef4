"""iq4_nl: 32 four-bit codes into a fixed table of unevenly spaced values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvquant.formats.ggml import ScaledBlockFormat, ggml_source
from kvquant.formats.ops import Ops

# ggml-common.h, kvalues_iq4nl: what the sixteen codes stand for, in steps of the scale.
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)

_INTEGER_LEVELS = LEVELS.astype(np.int8)

# Blocks whose largest magnitude is below this are stored as zeros (ggml-quants.c, GROUP_MAX_EPS).
_TINY = float(np.float32(1e-15))

# The level nearest to y, the upper one at equal distance. Every midpoint is a multiple of 1/2, so the answer
# depends on floor(2 y) alone: entry i answers for floor(2 y) = i - 256.
_NEAREST = np.searchsorted(LEVELS[:-1] + LEVELS[1:], np.arange(-256, 256), side="right").astype(np.uint8)


@dataclass(frozen=True)
class IQ4NL(ScaledBlockFormat):
    """fp16 scale d and the nearest of 16 `LEVELS` to x / d in four bits; decoded as LEVELS[q] * d.

    d is a least-squares fit, weighted by x squared, to the levels that a first guess of the scale picks. The
    two C functions of this name guess differently, and ``searches`` says which one is meant:

    True, `ggml_quantize_chunk`: the guesses put the block's peak (its value of largest magnitude) on 127,
    -134, -133 … -120; the best fit wins and the codes are picked anew with its d. False,
    `quantize_row_iq4_nl_ref`, with which llama.cpp writes its KV cache: one guess, the peak on -127, and the
    codes it picked. C leaves the codes of a block below 1e-15 undefined there; here they are those of zeros.
    """

    name: str = "iq4_nl"
    source: str = ggml_source("quantize_iq4_nl", "dequantize_row_iq4_nl")
    searches: bool = True
    block_bytes = 2 + 16

    def _fields(self, ops: Ops, x: Any, low: Any, high: Any) -> tuple[Any, ...]:
        peak = ops.peak(x, low, high)
        tiny = abs(peak) < _TINY
        places = ops.columns(x)
        weights = places * places

        def fit(factor: Any) -> tuple[Any, Any]:
            """Return the sums over a block of w q x and w q q, for the levels q nearest to x * factor."""
            levels = ops.lookup(LEVELS, ops.nearest(places * factor, _NEAREST))
            weighted = weights * levels
            return ops.sum_rows(weighted * places), ops.sum_rows(weighted * levels)

        factor = ops.inverse(ops.divide(peak, 127.0 if self.searches else -127.0))
        scale = self._best_scale(ops, fit, factor[:, 0], peak[:, 0])[:, None]
        # Overflow in the sums gives inf / inf; x86 makes that NaN negative, other machines do not.
        scale = ops.where(tiny, 0.0, ops.where(scale != scale, -math.nan, scale))
        chosen = ops.inverse(scale) if self.searches else ops.where(tiny, 0.0, factor)
        return scale, ops.nibbles(ops.nearest(x * chosen, _NEAREST))

    def _best_scale(self, ops: Ops, fit: Callable[[Any], tuple[Any, Any]], factor: Any, peak: Any) -> Any:
        """Return the scale (n,) of the best fit, the earliest of equals."""
        qx, qq = fit(factor)
        scale = ops.where(qq > 0, qx / qq, 0.0)
        best = scale * qx
        for level in range(-134, -119) if self.searches else ():
            qx, qq = fit(ops.divide(float(level), peak))
            better = (qq > 0) & (qx * qx > best * qq)
            scale = ops.where(better, qx / qq, scale)
            best = ops.where(better, scale * qx, best)
        return scale

    def _decode(self, ops: Ops, packed: Any, out: Any) -> None:
        scale, codes = ops.split(packed, 2, 16)
        ops.write(out, ops.levels(codes, _INTEGER_LEVELS), 0, ops.from_half(scale))


CACHE = IQ4NL("iq4_nl_cache", ggml_source("quantize_row_iq4_nl_ref", "dequantize_row_iq4_nl"), searches=False)
"""iq4_nl as llama.cpp writes it into a KV cache: the same layout, other bytes."""
