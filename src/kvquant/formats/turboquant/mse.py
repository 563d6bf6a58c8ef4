"""TurboQuant mse: every coordinate of the rotated direction goes to its nearest Lloyd-Max centroid.

Source: arXiv 2504.19874, algorithm 1. Differences: the rotation may be a randomised Hadamard transform; the
codebook is the one of the exact density at the given width, not of its Gaussian limit; the length is stored
in fp16 or fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvquant.formats.arrays import Array, lookup
from kvquant.formats.turboquant.base import TurboQuant
from kvquant.formats.turboquant.bits import n_code_bytes, pack, unpack
from kvquant.formats.turboquant.coder import coder
from kvquant.formats.turboquant.norms import column_norms


@dataclass(frozen=True)
class TurboQuantMSE(TurboQuant):
    """``bits`` a coordinate and one length: bytes are ceil(width·bits/8) of codes, then the length.

    norm_correction: store ‖x‖/‖ỹ‖ instead of ‖x‖, ỹ being the coded direction, so that decoded vectors have
    the right length at a slightly larger mean squared error.
    """

    norm_correction: bool = False

    kind = "mse"
    min_bits = 1
    n_norms = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "source", "arXiv 2504.19874, algorithm 1 (TurboQuant mse)")

    def _suffixes(self) -> str:
        return ("-nc" if self.norm_correction else "") + super()._suffixes()

    def _n_code_bytes(self, width: int) -> int:
        return n_code_bytes(width, self.bits)

    def _code(self, rotated: Array, norms: Array) -> tuple[Array, list[Array]]:
        table = coder(len(rotated), self.bits)
        codes = table.encode(rotated)
        if self.norm_correction:
            norms = norms / column_norms(lookup(table.centroids.astype("float64"), codes))
        return pack(codes, self.bits), [norms]

    def _decoded(self, code_bytes: Array, _norms: list[Array], width: int) -> Array:
        return coder(width, self.bits).decode(unpack(code_bytes, self.bits, width))
