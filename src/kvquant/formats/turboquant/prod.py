"""TurboQuant prod: mse at one bit less, and the signs of a random sketch of what it left over.

Source: arXiv 2504.19874, algorithm 2. For any y, ⟨y, x̃⟩ has mean ⟨y, x⟩ over the random sketch S, and
variance (π/2·‖y‖²‖r‖² - ⟨y, r⟩²)/d with r the residual. Differences from the paper: S is applied in rotated
coordinates, which has the same distribution as S times the rotation and saves rotating back while encoding;
‖r‖ is stored relative to ‖x‖, in the same precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kvquant.formats.arrays import Array, cast, like, namespace
from kvquant.formats.turboquant.base import TurboQuant
from kvquant.formats.turboquant.bits import n_code_bytes, pack, unpack
from kvquant.formats.turboquant.coder import coder
from kvquant.formats.turboquant.norms import column_norms
from kvquant.formats.turboquant.random_stream import SKETCH_STREAM, gaussians


@dataclass(frozen=True)
class TurboQuantProd(TurboQuant):
    """``bits`` a coordinate and two lengths: bytes are ceil(width·(bits-1)/8) of codes, ceil(width/8) of
    signs (bit i of the bit string set when (S·r)ᵢ >= 0), ‖x‖, ‖r‖/‖x‖.

    S is Gaussian, width × width. Its products are in float64 and rounded once (see `HaarRotation`).
    """

    kind = "prod"
    min_bits = 2
    n_norms = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "source", "arXiv 2504.19874, algorithm 2 (TurboQuant prod)")

    def _n_code_bytes(self, width: int) -> int:
        return n_code_bytes(width, self.bits - 1) + n_code_bytes(width, 1)

    def _code(self, rotated: Array, norms: Array) -> tuple[Array, list[Array]]:
        width = len(rotated)
        table = coder(width, self.bits - 1)
        codes = table.encode(rotated)
        residual = cast(rotated - table.decode(codes), "float64")
        signs = cast(like(sketch_matrix(width, self.seed), residual) @ residual >= 0, "uint8")
        code_bytes = namespace(codes).concatenate((pack(codes, self.bits - 1), pack(signs, 1)))
        return code_bytes, [norms, column_norms(residual)]

    def _decoded(self, code_bytes: Array, norms: list[Array], width: int) -> Array:
        n_mse_bytes = n_code_bytes(width, self.bits - 1)
        signs = cast(unpack(code_bytes[n_mse_bytes:], 1, width), "float64") * 2.0 - 1.0
        projected = cast(like(sketch_matrix(width, self.seed), signs).T @ signs, "float32")
        projected *= norms[1] * (math.sqrt(math.pi / 2) / width)
        codes = unpack(code_bytes[:n_mse_bytes], self.bits - 1, width)
        return coder(width, self.bits - 1).decode(codes) + projected


@lru_cache(maxsize=8)
def sketch_matrix(width: int, seed: int) -> npt.NDArray[np.float64]:
    """Return S, float64 (width, width) of independent standard normal entries; row i gives sign i."""
    return gaussians(seed, SKETCH_STREAM, width * width).reshape(width, width)
