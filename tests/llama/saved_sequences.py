"""Writes saved sequences as llama.cpp lays them out, from the layout's description, not from the parser."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from kvquant.formats.registry import get_format
from kvquant.model.shape import LayerShape, ModelShape, RecurrentState, WindowKind

TYPE_NUMBERS = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}

ATTENTION = LayerShape(n_head=4, n_head_kv=2, head_dim_k=32, head_dim_v=32)
WINDOWED = LayerShape(n_head=4, n_head_kv=2, head_dim_k=32, head_dim_v=32, window=3)
RECURRENT = LayerShape(n_head=0, n_head_kv=0, head_dim_k=0, head_dim_v=0, keeps_cache=False, recurrent=True)
LATENT = LayerShape(n_head=4, n_head_kv=1, head_dim_k=64, head_dim_v=32, stores_v=False)

PLAIN = ModelShape("plain", "llama", 0, (ATTENTION,) * 3)
SLIDING = ModelShape("sliding", "gemma3", 0, (WINDOWED, ATTENTION, WINDOWED), WindowKind.SLIDING)
HYBRID = ModelShape("hybrid", "qwen35", 0, (RECURRENT, ATTENTION, RECURRENT), state=RecurrentState(8, 16))
PRUNED = ModelShape("pruned", "deci", 0, (ATTENTION, LayerShape(4, 0, 32, 32), ATTENTION))
MLA = ModelShape("mla", "deepseek2", 0, (LATENT,) * 2)


@dataclass
class SavedSequence:
    """What to write. types: each layer's K and V type, else f16. rotations: of K and V. transforms: digests
    of what K of a layer went through.

    n_streams: all but the last are empty.
    """

    shape: ModelShape
    positions: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    types: dict[int, tuple[str, str]] = field(default_factory=dict)
    version: int = 4
    rotations: tuple[int, int] = (64, 64)
    transforms: dict[int, int] = field(default_factory=dict)
    packed_tokens: bool = True
    extended_cells: bool = False
    transposed: bool = False
    n_streams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self.written: dict[tuple[int, str], np.ndarray] = {}

    def to_bytes(self) -> bytes:
        tokens = list(range(10, 10 + len(self.positions)))
        if self.packed_tokens:
            tokens = [-1, 1, len(tokens), *tokens, 0]
        parts = [
            struct.pack("<III", 0x67677371, self.version, len(tokens)),
            struct.pack(f"<{len(tokens)}i", *tokens),
        ]
        kept = self.shape.kv_layers
        windowed = [layer for layer in kept if self.shape.layers[layer].window]
        parts.append(self._cache([layer for layer in kept if layer not in windowed], self.positions))
        if self.shape.window:
            last = max(self.positions)
            visible = [position for position in self.positions if last - position < self.shape.window]
            parts.append(self._cache(windowed, visible))
        if self.shape.n_recurrent:
            parts.append(self._recurrent())
        return b"".join(parts)

    def _cache(self, layers: list[int], positions: list[int]) -> bytes:
        empty = struct.pack("<I", 0) * (self.n_streams - 1)
        extension = b"\7" * {2: 8, 3: 12, 4: 12}[self.version] if self.extended_cells else b""
        cells = b"".join(
            struct.pack("<iI", position, 1) + extension + struct.pack("<i", 0) for position in positions
        )
        head = struct.pack("<I", self.n_streams) + empty + struct.pack("<I", len(positions)) + cells
        head += struct.pack("<II", self.transposed, len(layers))
        if self.version >= 4:
            head += struct.pack("<II", *self.rotations)
        k = b"".join(self._rows(layer, "k", len(positions)) for layer in layers)
        v = b"".join(
            self._rows(layer, "v", len(positions)) for layer in layers if self.shape.layers[layer].stores_v
        )
        return head + k + v

    def _rows(self, layer: int, side: str, n_cells: int) -> bytes:
        name = self.types.get(layer, ("f16", "f16"))["kv".index(side)]
        axes = self.shape.layers[layer]
        width = axes.n_embd_k if side == "k" else axes.n_embd_v
        values = self._rng.standard_normal((n_cells, width)).astype(np.float32)
        rows = get_format(name).quantize(values)
        self.written[layer, side] = rows
        if side == "v" and self.transposed:
            element = get_format(name).n_bytes(1)
            data = rows.reshape(n_cells, width, element).transpose(1, 0, 2)
            return struct.pack("<iII", TYPE_NUMBERS[name], element, width) + data.tobytes()
        if side == "k" and layer in self.transforms:
            marked = struct.pack("<iQ", TYPE_NUMBERS[name] | 1 << 17, self.transforms[layer])
            return marked + struct.pack("<Q", rows.shape[1]) + rows.tobytes()
        return struct.pack("<iQ", TYPE_NUMBERS[name], rows.shape[1]) + rows.tobytes()

    def _recurrent(self) -> bytes:
        state = self.shape.state
        assert state is not None
        parts = [struct.pack("<IiIII", 1, max(self.positions), 0, 0, self.shape.n_layer)]
        for n_values in (state.n_conv, state.n_state):
            parts += [struct.pack("<iQ", 0, 4 * n_values) + bytes(4 * n_values)] * self.shape.n_recurrent
        return b"".join(parts)
