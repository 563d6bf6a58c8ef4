"""What both TurboQuant formats share: a length, a direction, and a fixed random rotation of the direction.

A row is one head vector. Encoding divides it by its Euclidean length, rotates it, lets the subclass code the
rotated direction, and appends the length. Decoding undoes this. Everything runs on columns, (width, n): one
vector per column.

Rows without a direction are defined: a zero vector stores length 0 and decodes to zeros; a vector that holds
a NaN or an infinity stores length NaN and decodes to NaN throughout, with the codes of the zero vector.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from kvquant.errors import FormatError
from kvquant.formats.arrays import Array, cast, contiguous, namespace
from kvquant.formats.base import UnitFormat
from kvquant.formats.hadamard import COLUMN_VALUES
from kvquant.formats.ops import Ops
from kvquant.formats.turboquant.codebook import MAX_BITS, check_width
from kvquant.formats.turboquant.norms import (
    NormType,
    column_norms,
    n_norm_bytes,
    norms_from_bytes,
    norms_to_bytes,
)
from kvquant.formats.turboquant.rotation import HaarRotation, HadamardRotation, Rotation

RotationName = Literal["hadamard", "haar"]
_ROTATIONS: dict[RotationName, type[Rotation]] = {"hadamard": HadamardRotation, "haar": HaarRotation}


@dataclass(frozen=True)
class TurboQuant(UnitFormat):
    """A TurboQuant format; its name is made from its parameters (docs/turboquant.md has the grammar).

    bits: per coordinate. rotation: "hadamard" is O(d log d), "haar" the paper's dense matrix. norm_type: how
    lengths are stored. seed: of everything random in the format, 0 <= seed < 2^64; bytes written with one
    seed mean nothing under another.
    """

    name: str = field(init=False)
    source: str = field(init=False)
    bits: int
    rotation: RotationName = "hadamard"
    norm_type: NormType = "f16"
    seed: int = 0

    chunk_values: ClassVar[int] = COLUMN_VALUES

    kind: ClassVar[str]
    min_bits: ClassVar[int]
    n_norms: ClassVar[int]  # lengths stored per vector

    def __post_init__(self) -> None:
        if not self.min_bits <= self.bits <= MAX_BITS:
            raise FormatError(f"tq_{self.kind} takes {self.min_bits} to {MAX_BITS} bits, not {self.bits}")
        if not 0 <= self.seed < 1 << 64:
            raise FormatError(f"seed {self.seed} is outside 0..2^64-1; choose one in that range")
        object.__setattr__(self, "name", f"tq_{self.kind}_{self.bits}b{self._suffixes()}")

    def _suffixes(self) -> str:
        haar = "-qr" if self.rotation == "haar" else ""
        wide = "-f32" if self.norm_type == "f32" else ""
        return haar + wide + (f"-s{self.seed}" if self.seed else "")

    @abstractmethod
    def _n_code_bytes(self, width: int) -> int:
        """Return the bytes before the stored lengths."""

    @abstractmethod
    def _code(self, rotated: Array, norms: Array) -> tuple[Array, list[Array]]:
        """Return the code bytes, (n_code_bytes, n), and the lengths to store, float64 (n,) each.

        rotated: float32 (width, n), the rotated unit vectors. norms: float64 (n,), the lengths of the
        vectors.
        """

    @abstractmethod
    def _decoded(self, code_bytes: Array, norms: list[Array], width: int) -> Array:
        """Return what `_code` approximates, float32 (width, n), from its bytes and float32 (n,) norms."""

    def unit(self, width: int) -> tuple[int, int]:
        check_width(width)
        return width, self._n_code_bytes(width) + self.n_norms * n_norm_bytes(self.norm_type)

    def _encode(self, _ops: Ops, x: Any, out: Any) -> None:
        xp = namespace(x)
        columns = cast(contiguous(x.T), "float64")
        norms = column_norms(columns)
        finite = xp.isfinite(norms)
        if not bool(finite.all()):
            columns[:, ~finite] = 0.0
        # float64 throughout: the reciprocal of the least float32 has no float32.
        columns *= 1.0 / xp.where(finite & (norms > 0), norms, xp.ones_like(norms))
        rotated = self._rotation(x.shape[1]).forward(cast(columns, "float32"))
        code_bytes, stored = self._code(rotated, xp.where(finite, norms, xp.full_like(norms, float("nan"))))
        n_code_bytes, step = len(code_bytes), n_norm_bytes(self.norm_type)
        out[:, :n_code_bytes] = code_bytes.T
        for index, lengths in enumerate(stored):
            start = n_code_bytes + index * step
            out[:, start : start + step] = norms_to_bytes(lengths, self.norm_type)

    def _decode(self, _ops: Ops, packed: Any, out: Any) -> None:
        width = out.shape[1]
        n_code_bytes, step = self._n_code_bytes(width), n_norm_bytes(self.norm_type)
        starts = [n_code_bytes + index * step for index in range(self.n_norms)]
        norms = [norms_from_bytes(packed[:, start : start + step], self.norm_type) for start in starts]
        rotated = self._decoded(contiguous(packed[:, :n_code_bytes].T), norms, width)
        columns = self._rotation(width).inverse(rotated)
        columns *= norms[0]
        out[...] = columns.T

    def _rotation(self, width: int) -> Rotation:
        return _ROTATIONS[self.rotation](width, self.seed)
