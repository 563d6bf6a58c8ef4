"""Reading the files in which llama.cpp saves one sequence: every layer's K and V as they lie in the cache.

``llama_state_seq_save_file``, which llama-server's slot save calls, writes (little endian):

    u32 magic "ggsq", u32 version, u32 n, n x i32            the prompt's tokens, packed since version 3
    for each K/V cache of the model (full attention, then sliding window if there is one):
        u32 n_stream, and for each stream
            u32 n_cells; the rest of the stream only when that is not 0
            n_cells x { i32 position, u32 1, [cell extension], i32 sequence }
            u32 v_trans, u32 n_layer, and since version 4 u32 n_rot_k, u32 n_rot_v
            K: n_layer x { i32 type, [u64 digest of the transform], u64 row bytes, n_cells rows }
            V: n_layer x { i32 type, u64 row bytes, n_cells rows }, nothing under MLA, or with v_trans
               n_layer x { i32 type, u32 element bytes, u32 n_embd_v, n_embd_v x n_cells elements }
    for a model with recurrent layers:
        u32 n_cells, n_cells x { i32 position, u32 0 }, u32 0, u32 n_layer,
        { i32 type, u64 row bytes, n_cells rows } for each recurrent layer's convolution, then for each state

Source: src/llama-context.cpp (state_seq_save_file), src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp,
src/llama-memory-hybrid.cpp, src/llama-memory-recurrent.cpp (state_write and what it calls) and
tools/server/server-common.cpp (server_tokens::serialize) at the pin; versions 2 and 3 are those of earlier
trees. A sliding-window cache writes only the cells that its last token can still see. The file names neither
the model nor its layers, so the shape of the model that wrote it must be given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from kvquant.errors import CaptureError, FormatError
from kvquant.formats.base import Float32Array, Uint8Array
from kvquant.formats.registry import get_format
from kvquant.model.shape import ModelShape

_MAGIC = 0x67677371
_CELL_EXT_N_BYTES = {2: 8, 3: 12, 4: 12}
"""File version to the bytes of ``llama_kv_cell_ext``, which models with M-RoPE add to each cell."""

_MAX_STREAMS = 256
"""LLAMA_MAX_SEQ."""

_PACKED_TOKENS = -1
_PACKED_TOKENS_VERSION = 1

_UNROTATED = 1 << 16
"""Added, before version 4, to a type by a patched build under a mixed policy with LLAMA_ATTN_ROT_DISABLE set,
so that a cache with rotation refuses the file; llama-kv-layers.cpp of patch 0001-kv-layers."""

_TRANSFORMED = 1 << 17
"""Added to K's type by a patched build under --kv-transform; a digest of the layer's transform follows.
llama-kv-transform.h of patch 0005-kv-transform."""

_ROTATION_VERSION = 4
"""From which on a file says by what a cache's quantized rows are rotated."""

GGML_TYPE_NAMES = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    6: "q5_0",
    7: "q5_1",
    8: "q8_0",
    20: "iq4_nl",
    30: "bf16",
    0x4B56: "tq3",
    0x4B57: "tq2",
    0x4B58: "k5x3",
    0x4B59: "k4x2",
}
"""``enum ggml_type`` for the cache types, ggml/include/ggml.h; the last four of patch 0006-kv-types."""

_UNPACKED = ("f32", "f16", "bf16")
"""Types of one value each: never rotated, and the only ones that V can have transposed."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """The K or V cache of one layer as stored.

    type: the type's name. width: values per token. data: uint8 (n_cells, n_bytes), one packed row per token,
    or under a transposed V cache uint8 (width, n_cells, element bytes). marked_unrotated: the file says that
    quantized rows are stored without rotation; before version 4, only patched builds under a mixed policy say
    so. transform: digest of the exact change (--kv-transform) that K's rows went through, None for none.
    """

    type: str
    width: int
    data: Uint8Array
    transposed: bool = False
    marked_unrotated: bool = False
    transform: int | None = None

    @property
    def rows(self) -> Uint8Array:
        """Packed rows, uint8 (n_cells, n_bytes); a copy when V was stored transposed."""
        if not self.transposed:
            return self.data
        return np.ascontiguousarray(self.data.transpose(1, 0, 2)).reshape(self.data.shape[1], -1)

    def values(self) -> Float32Array:
        """What the rows decode to, float32 (n_cells, width)."""
        return get_format(self.type).dequantize(self.rows, self.width)


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """One layer that keeps a cache. ``v`` is None under multi-head latent attention, where V is part of K."""

    layer: int
    k: StoredRows
    v: StoredRows | None


@dataclass(frozen=True, eq=False)
class StoredCache:
    """One of the model's caches. positions: int32 (n_cells,), in the order of the rows; layers ascend.

    rotation_k, rotation_v: values that a Hadamard block of quantized rows turns, 0 without rotation; None
    before version 4, whose files do not say.
    """

    positions: npt.NDArray[np.int32]
    layers: tuple[StoredLayer, ...]
    rotation_k: int | None = None
    rotation_v: int | None = None


@dataclass(frozen=True, eq=False)
class SequenceState:
    """A saved sequence. tokens: int32 (n_tokens,). caches: full attention first, then sliding window if any.

    recurrent_n_bytes: what the recurrent layers' states take, 0 without any.
    """

    version: int
    tokens: npt.NDArray[np.int32]
    caches: tuple[StoredCache, ...]
    recurrent_n_bytes: int

    @property
    def layers(self) -> tuple[StoredLayer, ...]:
        """The layers of all caches by global index, ascending."""
        return tuple(sorted((s for cache in self.caches for s in cache.layers), key=lambda s: s.layer))


def load_state(path: str | Path, shape: ModelShape) -> SequenceState:
    """Read a slot-save file that a model of this shape wrote. Raises CaptureError, one line."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return parse_state(data, shape)
    except CaptureError as error:
        raise CaptureError(f"{path}: {error}") from error


def parse_state(data: bytes, shape: ModelShape) -> SequenceState:
    """Parse a saved sequence; rows are views of ``data``. Raises CaptureError, naming the byte, for anything
    else.
    """
    cursor = _Cursor(data)
    magic = cursor.u32("magic")
    if magic != _MAGIC:
        raise CaptureError("not a saved sequence of llama.cpp (magic 'ggsq'); save a slot of llama-server")
    version = cursor.u32("version")
    if version not in _CELL_EXT_N_BYTES:
        known = ", ".join(str(known) for known in _CELL_EXT_N_BYTES)
        raise CaptureError(
            f"saved sequence of version {version}, versions {known} are known; use the pinned tree"
        )
    tokens = _tokens(cursor)
    # Whether cells carry an extension is not in the file. Both are tried, and only one can use up the whole
    # file; when neither does, the one that got farther knows what is wrong.
    attempts = (0, _CELL_EXT_N_BYTES[version])
    start = cursor.at
    failures: list[tuple[int, CaptureError]] = []
    for ext_n_bytes in attempts:
        cursor.at = start
        try:
            caches, recurrent_n_bytes = _memory(cursor, shape, version, ext_n_bytes)
        except CaptureError as error:
            failures.append((cursor.at, error))
            continue
        return SequenceState(version, tokens, caches, recurrent_n_bytes)
    raise max(failures, key=lambda failure: failure[0])[1]


class _Cursor:
    """A place in the file. Nothing is read, and nothing allocated, that the file does not hold."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    @property
    def n_left(self) -> int:
        """Bytes from here to the end."""
        return len(self._data) - self.at

    def fail(self, message: str) -> NoReturn:
        """Raise, naming the place."""
        raise CaptureError(f"saved sequence, byte {self.at}: {message}")

    def array(self, dtype: npt.DTypeLike, count: int, what: str) -> npt.NDArray[Any]:
        """Return the next ``count`` items as a view and move past them."""
        kind = np.dtype(dtype)
        n_bytes = count * kind.itemsize
        if n_bytes > self.n_left:
            self.fail(f"{what}: {n_bytes} bytes announced, {self.n_left} left; the file is cut or foreign")
        found = np.frombuffer(self._data, kind, count, self.at)
        self.at += n_bytes
        return found

    def u32(self, what: str) -> int:
        """Return the next number."""
        return int(self.array("<u4", 1, what)[0])

    def expect(self, dtype: npt.DTypeLike, value: int, what: str) -> None:
        """Read a number that the model's shape fixes."""
        start = self.at
        found = int(self.array(dtype, 1, what)[0])
        if found != value:
            self.at = start
            self.fail(f"{what} is {found}, expected {value}; the file belongs to another model or is damaged")


def _tokens(cursor: _Cursor) -> npt.NDArray[np.int32]:
    tokens = cursor.array("<i4", cursor.u32("token count"), "tokens")
    if len(tokens) == 0 or tokens[0] != _PACKED_TOKENS:
        return tokens.astype(np.int32)
    packed = _Cursor(tokens.tobytes())
    packed.expect("<i4", _PACKED_TOKENS, "packed token marker")
    packed.expect("<u4", _PACKED_TOKENS_VERSION, "packed token version")
    tokens = packed.array("<i4", packed.u32("packed token count"), "packed tokens")
    if packed.u32("media count") != 0:
        raise CaptureError("saved sequence: its prompt holds images or audio; save a prompt of text only")
    return tokens.astype(np.int32)


def _memory(
    cursor: _Cursor, shape: ModelShape, version: int, ext_n_bytes: int
) -> tuple[tuple[StoredCache, ...], int]:
    caches = tuple(_cache(cursor, shape, layers, version, ext_n_bytes) for layers in _layers_of_caches(shape))
    recurrent_n_bytes = _skip_recurrent(cursor, shape.n_recurrent) if shape.n_recurrent else 0
    if cursor.n_left:
        cursor.fail(f"{cursor.n_left} bytes after the last layer; the file belongs to another model")
    return caches, recurrent_n_bytes


def _layers_of_caches(shape: ModelShape) -> list[tuple[int, ...]]:
    """The layers of each cache in the order of the file, as llama_kv_cache_iswa splits them."""
    if not shape.kv_layers:
        return []
    if not shape.window:
        return [shape.kv_layers]
    full = tuple(layer for layer in shape.kv_layers if not shape.layers[layer].window)
    return [full, tuple(layer for layer in shape.kv_layers if shape.layers[layer].window)]


def _cache(
    cursor: _Cursor, shape: ModelShape, layers: tuple[int, ...], version: int, ext_n_bytes: int
) -> StoredCache:
    n_streams = cursor.u32("stream count")
    if not 1 <= n_streams <= _MAX_STREAMS:
        cursor.fail(f"stream count {n_streams}, expected 1 to {_MAX_STREAMS}; the file is damaged or foreign")
    cache: StoredCache | None = None
    for _ in range(n_streams):
        n_cells = cursor.u32("cell count")
        if n_cells == 0:
            continue
        if cache is not None:
            cursor.fail("a second stream holds cells; a sequence must be in one stream")
        cache = _stream(cursor, shape, layers, n_cells, version, ext_n_bytes)
    if cache is None:
        cursor.fail("the sequence has no cell; run a prompt before saving the slot")
    return cache


def _stream(
    cursor: _Cursor, shape: ModelShape, layers: tuple[int, ...], n_cells: int, version: int, ext_n_bytes: int
) -> StoredCache:
    cell = [("position", "<i4"), ("n_seq_id", "<u4"), ("ext", "u1", (ext_n_bytes,)), ("seq_id", "<i4")]
    start = cursor.at
    cells = cursor.array(cell, n_cells, "cells")
    if np.any(cells["n_seq_id"] != 1) or np.any(cells["position"] < 0):
        cursor.at = start
        cursor.fail("a cell does not belong to exactly one sequence; the file is damaged or foreign")
    transposed = cursor.u32("V transposition")
    if transposed > 1:
        cursor.fail(f"V transposition is {transposed}, expected 0 or 1; the file is damaged or foreign")
    cursor.expect("<u4", len(layers), "layer count")
    rotation_k = _rotation(cursor, "K") if version >= _ROTATION_VERSION else None
    rotation_v = _rotation(cursor, "V") if version >= _ROTATION_VERSION else None
    k_rows = {
        layer: _keys(cursor, f"K of layer {layer}", shape.layers[layer].n_embd_k, n_cells, rotation_k)
        for layer in layers
    }
    read_v = _transposed_rows if transposed else _rows
    v_rows = {
        layer: read_v(cursor, f"V of layer {layer}", shape.layers[layer].n_embd_v, n_cells, rotation_v)
        for layer in layers
        if shape.layers[layer].stores_v
    }
    stored = tuple(StoredLayer(layer, k_rows[layer], v_rows.get(layer)) for layer in layers)
    return StoredCache(cells["position"].astype(np.int32), stored, rotation_k, rotation_v)


def _rotation(cursor: _Cursor, side: str) -> int:
    start = cursor.at
    size = cursor.u32(f"rotation of {side}")
    if size & (size - 1):
        cursor.at = start
        cursor.fail(
            f"rotation of {side} is {size}, expected 0 or a power of two; the file is damaged or foreign"
        )
    return size


def _keys(cursor: _Cursor, what: str, width: int, n_cells: int, rotation: int | None) -> StoredRows:
    return _rows(cursor, what, width, n_cells, rotation, _UNROTATED | _TRANSFORMED)


def _rows(
    cursor: _Cursor, what: str, width: int, n_cells: int, rotation: int | None, marks: int = _UNROTATED
) -> StoredRows:
    name, marked = _type(cursor, what, marks)
    unrotated = bool(marked & _UNROTATED) or (rotation == 0 and name not in _UNPACKED)
    transformed = marked & _TRANSFORMED
    transform = int(cursor.array("<u8", 1, f"{what}: transform")[0]) if transformed else None
    n_bytes = _row_n_bytes(cursor, name, width, what)
    cursor.expect("<u8", n_bytes, f"{what}: row size")
    data = cursor.array(np.uint8, n_cells * n_bytes, what).reshape(n_cells, n_bytes)
    return StoredRows(name, width, data, marked_unrotated=unrotated, transform=transform)


def _transposed_rows(
    cursor: _Cursor, what: str, width: int, n_cells: int, _rotation: int | None
) -> StoredRows:
    name, _ = _type(cursor, what, _UNROTATED)
    n_bytes = _row_n_bytes(cursor, name, width, what)
    if name not in _UNPACKED:
        cursor.fail(f"{what}: type {name} cannot be stored transposed; the file is damaged or foreign")
    element_n_bytes = get_format(name).n_bytes(1)
    cursor.expect("<u4", element_n_bytes, f"{what}: element size")
    cursor.expect("<u4", width, f"{what}: width")
    data = cursor.array(np.uint8, n_cells * n_bytes, what).reshape(width, n_cells, element_n_bytes)
    return StoredRows(name, width, data, transposed=True)


def _type(cursor: _Cursor, what: str, marks: int) -> tuple[str, int]:
    """The type's name, and which of the marks it carries."""
    start = cursor.at
    number = int(cursor.array("<i4", 1, f"{what}: type")[0])
    name = GGML_TYPE_NAMES.get(number & ~marks)
    if name is None:
        cursor.at = start
        cursor.fail(f"{what}: ggml type {number} is not a cache type; the file is damaged or foreign")
    return name, number & marks


def _row_n_bytes(cursor: _Cursor, name: str, width: int, what: str) -> int:
    try:
        return get_format(name).n_bytes(width)
    except FormatError:
        cursor.fail(f"{what}: rows of {width} values cannot be {name}; the file belongs to another model")


def _skip_recurrent(cursor: _Cursor, n_recurrent: int) -> int:
    start = cursor.at
    n_cells = cursor.u32("recurrent cell count")
    cells = cursor.array([("position", "<i4"), ("n_seq_id", "<u4")], n_cells, "recurrent cells")
    if np.any(cells["n_seq_id"] != 0):
        cursor.fail(
            "a recurrent cell does not belong to exactly one sequence; the file is damaged or foreign"
        )
    cursor.expect("<u4", 0, "recurrent transposition")
    cursor.u32("recurrent layer count")
    for what in ("convolution", "state"):
        for index in range(n_recurrent):
            cursor.expect("<i4", 0, f"type of recurrent {what} {index}")
            n_bytes = int(cursor.array("<u8", 1, f"size of recurrent {what} {index}")[0])
            cursor.array(np.uint8, n_cells * n_bytes, f"recurrent {what} {index}")
    return cursor.at - start
