"""The Hadamard rotation llama.cpp applies to K and V before it stores them in a quantized cache.

Source: llama.cpp 0c1e57098bba43ac29e6e3b677cdceebdd22334f, `ggml_gen_hadamard` and
`llama_kv_cache::build_input_k_rot` / `build_input_v_rot` in src/llama-kv-cache.cpp, computed by
`ggml_compute_forward_fwht` in ggml/src/ggml-cpu/ops.cpp.

Each head vector is cut into blocks of 2^k values and every block is multiplied by the orthonormal
Walsh-Hadamard matrix in natural order, H[i, j] = (-1)^popcount(i & j) / sqrt(block). H is symmetric and H·H =
I, so the same call undoes it. Q is rotated like K, and the attention output like V, so attention itself is
unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from kvquant.errors import FormatError
from kvquant.formats.arrays import Array, contiguous
from kvquant.formats.base import Format, UnitFormat
from kvquant.formats.chunks import map_units
from kvquant.formats.ops import Ops
from kvquant.formats.tensors import float_rows

COLUMN_VALUES = 1 << 17
"""Values a kernel on columns wants at a time: NumPy is fast when the inner axis is about a thousand long."""

SMALLEST_BLOCK = 64
"""llama.cpp rotates only heads whose width this divides, and uses it for every V."""


def llama_block(head_dim: int, side: Literal["k", "v"]) -> int | None:
    """Return the block llama.cpp rotates heads of ``head_dim`` values by, or None when it leaves them alone.

    K takes the largest power of two that divides head_dim, V takes 64; both only when 64 divides head_dim.
    Besides, llama.cpp rotates only when that side's cache type is quantized (not f32, f16 or bf16), all
    layers of the cache have one head_dim, V is not part of an MLA cache, and LLAMA_ATTN_ROT_DISABLE is not
    set.
    """
    if head_dim <= 0 or head_dim % SMALLEST_BLOCK:
        return None
    return head_dim & -head_dim if side == "k" else SMALLEST_BLOCK


def walsh_hadamard(columns: Array, size: int) -> None:
    """Transform ``columns``, float32 (m, n) and contiguous, in place along axis 0 in blocks of ``size`` rows.

    Unnormalised, natural order, butterflies from the nearest pair to the farthest: the order of ggml's
    kernel, so that every intermediate rounds alike.
    """
    half = 1
    while half < size:
        pairs = columns.reshape(-1, 2, half * columns.shape[1])
        low, high = pairs[:, 0], pairs[:, 1]
        difference = low - high
        low += high
        high[...] = difference
        half *= 2


def rotate(x: Any, block: int) -> Any:
    """Return ``x``, (..., width), with every block of ``block`` values rotated: float32, NumPy or Torch as
    given.

    Bit for bit what ggml's CPU kernel computes on finite values: scaled by 1/sqrt(block) first, then
    butterflies. NaN and infinity spread over their block. Raises FormatError when block is not a power of two
    that divides width.
    """
    x = float_rows(x)
    _check_block(x.shape[-1], block)
    return map_units(_rotate_blocks, x, (block, block), "float32", "float32", COLUMN_VALUES)


def unrotate(x: Any, block: int) -> Any:
    """Undo `rotate` up to float32 rounding: the matrix is its own inverse."""
    return rotate(x, block)


@dataclass(frozen=True)
class Rotated(UnitFormat):
    """A format measured the way llama.cpp uses it: rotate, pack; unpack, rotate back.

    The packed bytes are the inner format's. `Rotated(get_format("q4_0"), 64)` is called "q4_0+h64".
    """

    name: str = field(init=False)
    source: str = field(init=False)
    inner: Format
    block: int

    chunk_values: ClassVar[int] = COLUMN_VALUES

    def __post_init__(self) -> None:
        _check_block(self.block, self.block)
        object.__setattr__(self, "name", f"{self.inner.name}+h{self.block}")
        object.__setattr__(self, "source", f"{self.inner.source}, after llama.cpp's Hadamard rotation")

    def unit(self, width: int) -> tuple[int, int]:
        _check_block(width, self.block)
        return width, self.inner.n_bytes(width)

    def _encode(self, _ops: Ops, x: Any, out: Any) -> None:
        out[...] = self.inner.quantize(rotate(x, self.block))

    def _decode(self, _ops: Ops, packed: Any, out: Any) -> None:
        out[...] = unrotate(self.inner.dequantize(packed, out.shape[1]), self.block)


def _rotate_blocks(_ops: Ops, x: Array, out: Array) -> None:
    """Write the rotated rows of ``x``, float32 (n, block), into ``out``."""
    block = x.shape[1]
    columns = contiguous(x.T) * float(np.float32(1.0) / np.sqrt(np.float32(block)))
    walsh_hadamard(columns, block)
    out[...] = columns.T


def _check_block(width: int, block: int) -> None:
    if block < 1 or block & (block - 1):
        raise FormatError(f"a rotation block of {block} is not a power of two; take 64, 128 or 256")
    if width < 1 or width % block:
        raise FormatError(
            f"a row of {width} values is not a multiple of the rotation block {block}; choose a divisor"
        )
