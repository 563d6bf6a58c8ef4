"""Blocks of codes that point into a small table of integers, each part behind an fp16 scale of its own.

For values that a Hadamard matrix has made alike, so that one codebook fits them all. A code is a sign and the
number of a magnitude; what is decoded is an integer of at most 7 bits times the scale, so that a byte shuffle
and an integer dot product read it.

All that the bytes depend on is an integer, one correctly rounded IEEE operation, or a float64 sum, in a fixed
order, of products that float64 holds exactly: a compiler that fuses multiplications with additions, and
vectors of any length, give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kvquant.formats.arrays import Array, cast, contiguous, lookup, namespace
from kvquant.formats.base import BlockFormat
from kvquant.formats.hadamard import COLUMN_VALUES
from kvquant.formats.ops import Ops
from kvquant.formats.planes import n_plane_bytes, pack, unpack
from kvquant.formats.turboquant.norms import column_norms, column_sums, norms_from_bytes, norms_to_bytes

SCALE_BYTES = 2


class _Codes(NamedTuple):
    """Which magnitude each value takes, uint8 (n_values, n); over the values, float64 (n,), the sum of the
    magnitudes' squares, and the squared norm of the projection onto them.
    """

    places: Array
    squares: Array
    closeness: Array


@dataclass(frozen=True)
class Part:
    """``n_values`` values behind one scale: fp16, then the codes in planes.

    magnitudes: ascending integers of 1 to 127 that a code can stand for, in steps of the scale. anchor: what
    the encoder measures values by, their largest magnitude or their norm. tries: what the anchor is brought
    to in turn, in the same steps, for each value to take the nearest magnitude; the codes that point most
    nearly where the values do are kept, the first of equals. planes: bits of a code by plane; its highest
    bit is the sign, set for negative values and for -0.

    The scale is the one that gives the values' norm back.
    """

    n_values: int
    magnitudes: tuple[int, ...]
    anchor: Literal["peak", "norm"]
    tries: tuple[float, ...]
    planes: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the part, scale included."""
        return SCALE_BYTES + n_plane_bytes(self.n_values, self.planes)

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        """What each code stands for, float32: the magnitudes, then their negatives."""
        positive = np.array(self.magnitudes, np.float32)
        return np.concatenate((positive, -positive))

    def encode(self, columns: Array) -> Array:
        """Pack finite float32 (n_values, n), one vector a column, into uint8 (n_bytes, n)."""
        xp = namespace(columns)
        sizes = abs(columns)
        exact = cast(sizes, "float64")
        norms = column_norms(exact)
        anchors = norms if self.anchor == "norm" else xp.amax(exact, 0)
        best = self._nearest(sizes, exact, anchors, self.tries[0])
        for steps in self.tries[1:]:
            new = self._nearest(sizes, exact, anchors, steps)
            closer = new.closeness > best.closeness
            best = _Codes(*(xp.where(closer, *pair) for pair in zip(new, best, strict=True)))
        scales = norms_to_bytes(norms / xp.sqrt(best.squares), "f16")
        signs = cast(xp.signbit(columns), "uint8") * len(self.magnitudes)
        return xp.concatenate((scales.T, pack(best.places + signs, self.planes)))

    def _nearest(self, sizes: Array, exact: Array, anchors: Array, steps: float) -> _Codes:
        """Return what values of ``sizes``, float32 (n_values, n), become where anchors are ``steps`` steps.

        exact: the sizes in float64. anchors: float64 (n,).
        """
        xp = namespace(sizes)
        # Tensor by tensor: Torch may make number / tensor a product with a rounded reciprocal.
        inverse = cast(xp.full_like(anchors, steps) / anchors, "float32")
        # Infinite for zeros and for what is too small for float32; the scale is 0 then, whatever the codes.
        in_steps = sizes * xp.where(xp.isfinite(inverse), inverse, xp.zeros_like(inverse))
        places = xp.zeros_like(in_steps, dtype=xp.uint8)
        for below, above in pairwise(self.magnitudes):
            places += cast(in_steps >= (below + above) / 2, "uint8")
        levels = lookup(np.array(self.magnitudes, np.float64), places)
        squares = (levels * levels).sum(0)  # of integers: exact in any order
        product = column_sums(exact * levels)
        return _Codes(places, squares, product * product / squares)

    def decode(self, packed: Array) -> Array:
        """Unpack uint8 (n_bytes, n) into float32 (n_values, n)."""
        scales = norms_from_bytes(contiguous(packed[:SCALE_BYTES].T), "f16")
        return lookup(self.levels, unpack(packed[SCALE_BYTES:], self.planes, self.n_values)) * scales


@dataclass(frozen=True)
class CodedBlock(BlockFormat):
    """A block of parts, one after another.

    A block that holds a NaN or an infinity gets scales of NaN and the codes of zeros, and decodes to NaN in
    every place; a scale past 65504 is stored as that.

    rotation_block: of how many values the Hadamard matrix is that every block goes through before; None for
    the one that llama.cpp gives the head.
    """

    parts: ClassVar[tuple[Part, ...]]
    rotation_block: ClassVar[int | None] = None
    chunk_values: ClassVar[int] = COLUMN_VALUES

    def _encode(self, _ops: Ops, x: Any, out: Any) -> None:
        xp = namespace(x)
        columns = contiguous(x.T)
        finite = xp.isfinite(columns).all(0)
        columns = xp.where(finite, columns, xp.zeros_like(columns))
        place = start = 0
        for part in self.parts:
            fields = part.encode(columns[place : place + part.n_values])
            fields[0] = xp.where(finite, fields[0], xp.full_like(fields[0], 0x00))
            fields[1] = xp.where(finite, fields[1], xp.full_like(fields[1], 0x7E))
            out[:, start : start + part.n_bytes] = fields.T
            place, start = place + part.n_values, start + part.n_bytes

    def _decode(self, _ops: Ops, packed: Any, out: Any) -> None:
        columns = contiguous(packed.T)
        place = start = 0
        for part in self.parts:
            values = part.decode(columns[start : start + part.n_bytes])
            out[:, place : place + part.n_values] = values.T
            place, start = place + part.n_values, start + part.n_bytes
