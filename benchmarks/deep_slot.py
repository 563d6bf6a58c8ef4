"""A saved llama-server slot that fills a cache to any depth without computing it.

What is in a cache does not change how long attention over it takes, so a benchmark need not read thousands of
tokens on the slow path before the clock starts. The layout is described in `kvquant.llama.state`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from kvquant.formats.registry import get_format
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedPolicy

_MAGIC, _VERSION = 0x67677371, 4
_PACKED_TOKENS = (-1, 1)
_N_DISTINCT_ROWS = 256
_FLOATS = ("f32", "f16", "bf16")
_LEAST_ROTATED = 64
"""Values that a Hadamard block turns, at least; heads that are no multiple are not rotated."""


def write_deep_slot(path: Path, shape: ModelShape, policy: ResolvedPolicy, tokens: Sequence[int]) -> None:
    """Write a slot that holds ``tokens`` under ``policy``, with random K and V.

    shape: a model whose layers all have full attention, with heads of the same width.
    """
    packed = [*_PACKED_TOKENS, len(tokens), *tokens, 0]
    with path.open("wb") as file:
        file.write(struct.pack("<III", _MAGIC, _VERSION, len(packed)))
        file.write(struct.pack(f"<{len(packed)}i", *packed))
        file.write(struct.pack("<II", 1, len(tokens)))
        file.writelines(struct.pack("<iIi", position, 1, 0) for position in range(len(tokens)))
        file.write(struct.pack("<II", 0, len(policy.layers)))
        file.write(struct.pack("<II", *_rotations(shape, policy)))
        for type_name, width in _sides(shape, policy):
            rows = _rows(type_name, width)
            file.write(struct.pack("<iQ", GGMLQuantizationType[type_name.upper()], rows.shape[1]))
            for start in range(0, len(tokens), len(rows)):
                file.write(rows[: len(tokens) - start].tobytes())


def _rotations(shape: ModelShape, policy: ResolvedPolicy) -> tuple[int, int]:
    """Values of a Hadamard block of K and of V, 0 without a quantized type on that side.

    As llama_kv_cache's constructor settles them: the widest block that fits K's heads, the least one for V.
    """
    layer = shape.layers[policy.layers[0].layer]
    widest = layer.head_dim_k & -layer.head_dim_k
    k = widest if any(each.k_type not in _FLOATS for each in policy.layers) else 0
    v = _LEAST_ROTATED if any(each.v_type not in _FLOATS for each in policy.layers) else 0
    return (
        k if layer.head_dim_k % _LEAST_ROTATED == 0 else 0,
        v if layer.head_dim_v % _LEAST_ROTATED == 0 else 0,
    )


def _sides(shape: ModelShape, policy: ResolvedPolicy) -> Iterator[tuple[str, int]]:
    """Type and width of every tensor in the order of the file: K of all layers, then V."""
    for layer in policy.layers:
        yield layer.k_type, shape.layers[layer.layer].n_embd_k
    for layer in policy.layers:
        yield layer.v_type, shape.layers[layer.layer].n_embd_v


def _rows(type_name: str, width: int) -> npt.NDArray[np.uint8]:
    values = np.random.default_rng(0).standard_normal((_N_DISTINCT_ROWS, width), np.float32)
    return get_format(type_name).quantize(values)
