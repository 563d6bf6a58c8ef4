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
from kvquant.formats.storage import rotation_block
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedPolicy

_MAGIC, _VERSION = 0x67677371, 4
_PACKED_TOKENS = (-1, 1)
_N_DISTINCT_ROWS = 256


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
    """Values of a Hadamard block of K and of V; 0 without a rotated type on that side."""
    layer = shape.layers[policy.layers[0].layer]
    return (
        max(rotation_block(each.k_type, layer.head_dim_k, "k") or 0 for each in policy.layers),
        max(rotation_block(each.v_type, layer.head_dim_v, "v") or 0 for each in policy.layers),
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
