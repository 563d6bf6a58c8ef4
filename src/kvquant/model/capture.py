"""K, V and, where it was had, Q of a real run: the values a cache policy is judged on, and their file.

The file is an NPZ without pickles:

    meta          uint8 (n,), UTF-8 JSON: schema_version, model, arch, n_layer, queries, source, and layers, a
                  list of {layer, n_head, n_head_kv, head_dim_k, head_dim_v, logit_scale, window}
    positions     int32 (n_tokens,), ascending
    k.<layer>     float32 or float16 (n_kept, n_head_kv, head_dim_k), after RoPE, not rotated by llama.cpp's
                  Hadamard matrix; n_kept is n_tokens, or less in a sliding-window layer, which then holds the
                  last n_kept tokens
    v.<layer>     float32 or float16 (n_kept, n_head_kv, head_dim_v)
    q_positions   int32 (n_query,), ascending; only with queries
    q.<layer>     float32 or float16 (n_query, n_head, head_dim_k), after RoPE, before the logit scale

Arrays need not be in memory: a capture of memory maps is written, and its values are read, piece by piece.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from kvquant.errors import CaptureError
from kvquant.files import replacing

SCHEMA_VERSION = 1

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Int32Array = npt.NDArray[np.int32]

Queries = Literal["captured", "synthetic", "none"]
"""Where Q comes from: the run itself, a random generator, or nowhere (there are no Q arrays)."""

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))

# Deflate cannot do better, so a member that claims more is lying about its size.
_MAX_INFLATION = 1032


@dataclass(frozen=True)
class LayerAxes:
    """The axes of one layer that keeps a cache, and what its attention does with them.

    logit_scale: what q·k is multiplied by before the softmax.
    window: how many of the last tokens a query sees, its own included; 0 for all.
    """

    layer: int
    n_head: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    logit_scale: float
    window: int = 0

    def __post_init__(self) -> None:
        counts = (self.n_head, self.n_head_kv, self.head_dim_k, self.head_dim_v)
        if self.layer < 0 or min(counts) < 1 or self.window < 0:
            raise CaptureError(f"capture: layer {self.layer}: heads, widths and window must be positive")
        if self.n_head % self.n_head_kv:
            raise CaptureError(
                f"capture: layer {self.layer}: {self.n_head} heads cannot share {self.n_head_kv} KV heads"
            )
        if not (math.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise CaptureError(f"capture: layer {self.layer}: logit scale {self.logit_scale} is not positive")


@dataclass(frozen=True)
class LayerCapture:
    """One layer's arrays, read-only.

    k: (n_kept, n_head_kv, head_dim_k). v: (n_kept, n_head_kv, head_dim_v).
    q: (n_query, n_head, head_dim_k), or None.
    """

    axes: LayerAxes
    k: FloatArray
    v: FloatArray
    q: FloatArray | None = None

    def __post_init__(self) -> None:
        for name in ("k", "v", "q"):
            _freeze(self, name)


@dataclass(frozen=True)
class KVCapture:
    """One sequence through one model. Arrays are read-only; all layers hold the same tokens, but a
    sliding-window layer may hold only the last of them.

    n_layer counts all layers of the model; ``layers`` holds those that keep a cache, ascending.
    Raises CaptureError when axes, dtypes or values do not fit together.
    """

    model: str
    arch: str
    n_layer: int
    source: str
    positions: Int32Array
    layers: tuple[LayerCapture, ...]
    queries: Queries = "none"
    q_positions: Int32Array | None = None

    def __post_init__(self) -> None:
        if self.queries not in get_args(Queries):
            raise CaptureError(f"capture: queries is {self.queries!r}; known: {', '.join(get_args(Queries))}")
        if not self.layers:
            raise CaptureError("capture: there is no layer with a cache")
        numbers = [layer.axes.layer for layer in self.layers]
        if sorted(set(numbers)) != numbers or numbers[-1] >= self.n_layer:
            raise CaptureError(f"capture: layers {numbers} are not ascending numbers below {self.n_layer}")
        for name in ("positions", "q_positions"):
            _freeze(self, name)
        _check_positions("positions", self.positions)
        if (self.queries == "none") is not (self.q_positions is None):
            raise CaptureError(f"capture: queries is {self.queries!r}, so q_positions must fit that")
        if self.q_positions is not None:
            _check_positions("q_positions", self.q_positions)
        for layer in self.layers:
            self._check_layer(layer)

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache."""
        return len(self.positions)

    def positions_of(self, layer: LayerCapture) -> Int32Array:
        """Return the positions of the tokens this layer holds, int32 (n_kept,)."""
        return self.positions[self.n_tokens - len(layer.k) :]

    def _check_layer(self, layer: LayerCapture) -> None:
        n_kept = layer.k.shape[0] if layer.k.ndim else 0
        if n_kept != self.n_tokens and not (layer.axes.window and 0 < n_kept < self.n_tokens):
            raise CaptureError(
                f"capture: k.{layer.axes.layer} holds {n_kept} tokens, positions has {self.n_tokens}"
            )
        for name, shape in _expected_shapes(layer.axes, n_kept, _n_query(self.q_positions)).items():
            array = getattr(layer, name)
            if array is None:
                raise CaptureError(f"capture: {name}.{layer.axes.layer} is missing")
            _check_floats(f"{name}.{layer.axes.layer}", array, shape)
        if self.q_positions is None and layer.q is not None:
            raise CaptureError(f"capture: q.{layer.axes.layer} is there but q_positions is not")


def save_capture(capture: KVCapture, path: str | Path, *, half: bool = False) -> None:
    """Write ``capture`` atomically, array by array.

    half: as float16, which is what an f16 cache would hold. Raises KVQuantError when the file cannot be
    written, CaptureError for a value that float16 cannot hold.
    """
    meta = {
        "schema_version": SCHEMA_VERSION,
        "model": capture.model,
        "arch": capture.arch,
        "n_layer": capture.n_layer,
        "queries": capture.queries,
        "source": capture.source,
        "layers": [asdict(layer.axes) for layer in capture.layers],
    }
    arrays: dict[str, npt.NDArray[Any]] = {
        "meta": np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
        "positions": capture.positions,
    }
    if capture.q_positions is not None:
        arrays["q_positions"] = capture.q_positions
    for layer in capture.layers:
        for side in ("k", "v", "q"):
            array = getattr(layer, side)
            if array is not None:
                arrays[f"{side}.{layer.axes.layer}"] = array
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            kept = _halved(name, array) if half and array.dtype == np.float32 else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(
                    member, np.ascontiguousarray(kept), version=(1, 0), allow_pickle=False
                )


def _halved(name: str, array: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        kept = array.astype(np.float16)
    if not np.isfinite(kept).all():
        raise CaptureError(f"capture: {name} holds {np.abs(array).max():.4g}, beyond float16; keep float32")
    return kept


def load_capture(path: str | Path) -> KVCapture:
    """Read a capture. Raises CaptureError for anything that is not a whole, consistent capture file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except CaptureError as error:
        raise CaptureError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise CaptureError(f"{path}: there is no such file; kvquant capture writes one") from error
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise CaptureError(f"{path}: not a whole NPZ file ({error}); kvquant capture writes one") from error


def _read(archive: zipfile.ZipFile) -> KVCapture:
    members = {info.filename: info for info in archive.infolist()}

    def array(
        name: str, dtypes: tuple[np.dtype[Any], ...], shape: tuple[int | None, ...]
    ) -> npt.NDArray[Any]:
        info = members.pop(f"{name}.npy", None)
        if info is None:
            raise CaptureError(f"capture: {name} is missing")
        return _read_member(archive, info, name, dtypes, shape)

    meta = _parse_meta(array("meta", (np.dtype(np.uint8),), (None,)).tobytes())
    positions = array("positions", (np.dtype(np.int32),), (None,))
    q_positions = None
    if meta["queries"] != "none":
        q_positions = array("q_positions", (np.dtype(np.int32),), (None,))
    layers = []
    for axes in meta["layers"]:
        shapes = _expected_shapes(axes, None, _n_query(q_positions))
        sides = {side: array(f"{side}.{axes.layer}", _FLOATS, shape) for side, shape in shapes.items()}
        layers.append(LayerCapture(axes, **sides))
    if members:
        raise CaptureError(f"capture: unknown arrays {', '.join(sorted(members)[:4])}")
    return KVCapture(
        model=meta["model"],
        arch=meta["arch"],
        n_layer=meta["n_layer"],
        source=meta["source"],
        positions=positions,
        layers=tuple(layers),
        queries=meta["queries"],
        q_positions=q_positions,
    )


def _read_member(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    name: str,
    dtypes: tuple[np.dtype[Any], ...],
    shape: tuple[int | None, ...],
) -> npt.NDArray[Any]:
    """Read one array, after its header has been held against the size of the file and the expected axes."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise CaptureError(f"capture: {name} is an array of format {version}, expected 1.0")
        found, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        header_n_bytes = file.tell()
    n_bytes = math.prod(found) * dtype.itemsize
    if header_n_bytes + n_bytes != info.file_size or info.file_size > _MAX_INFLATION * info.compress_size:
        raise CaptureError(f"capture: {name} claims {n_bytes} bytes that are not there")
    _check_axes(name, found, dtype, dtypes, shape)
    if fortran_order:
        raise CaptureError(f"capture: {name} is stored column by column, expected row by row")
    data = archive.read(info)
    return np.frombuffer(data, dtype=dtype, offset=header_n_bytes).reshape(found)


def _parse_meta(data: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CaptureError("capture: meta is not JSON") from error
    if not isinstance(meta, dict):
        raise CaptureError("capture: meta is not a JSON object")
    version = meta.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CaptureError(f"capture: schema version {version!r}, this kvquant reads {SCHEMA_VERSION}")
    kinds = {"model": str, "arch": str, "n_layer": int, "queries": str, "source": str, "layers": list}
    _check_kinds(meta, kinds, "meta")
    meta["layers"] = [_parse_axes(entry) for entry in meta["layers"]]
    return meta


def _parse_axes(entry: object) -> LayerAxes:
    if not isinstance(entry, dict):
        raise CaptureError("capture: an entry of layers is not a JSON object")
    counts = dict.fromkeys(("layer", "n_head", "n_head_kv", "head_dim_k", "head_dim_v", "window"), int)
    _check_kinds(entry, counts, "layers")
    _check_kinds(entry, {"logit_scale": float}, "layers")
    return LayerAxes(**{name: entry[name] for name in (*counts, "logit_scale")})


def _check_kinds(entry: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> None:
    for name, kind in kinds.items():
        # bool is an int to isinstance; JSON true is no count.
        if type(entry.get(name)) is not kind:
            raise CaptureError(f"capture: {where} needs {name}, a JSON {kind.__name__}")


def _n_query(q_positions: Int32Array | None) -> int | None:
    return None if q_positions is None else len(q_positions)


def _expected_shapes(
    axes: LayerAxes, n_kept: int | None, n_query: int | None
) -> dict[str, tuple[int | None, ...]]:
    """The shape of each array of a layer; None where any extent will do."""
    shapes: dict[str, tuple[int | None, ...]] = {
        "k": (n_kept, axes.n_head_kv, axes.head_dim_k),
        "v": (n_kept, axes.n_head_kv, axes.head_dim_v),
    }
    if n_query is not None:
        shapes["q"] = (n_query, axes.n_head, axes.head_dim_k)
    return shapes


def _check_axes(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    dtypes: tuple[np.dtype[Any], ...],
    expected: tuple[int | None, ...],
) -> None:
    if dtype not in dtypes:
        known = " or ".join(str(known) for known in dtypes)
        raise CaptureError(f"capture: {name} is {dtype}, expected {known}")
    fits = len(shape) == len(expected) and all(e in (None, s) for s, e in zip(shape, expected, strict=True))
    if not fits:
        axes = ", ".join("n" if extent is None else str(extent) for extent in expected)
        raise CaptureError(f"capture: {name} has axes {shape}, expected ({axes})")


def _check_positions(name: str, positions: npt.NDArray[Any]) -> None:
    _check_axes(name, positions.shape, positions.dtype, (np.dtype(np.int32),), (None,))
    if len(positions) == 0:
        raise CaptureError(f"capture: {name} is empty, there is no token")
    if positions[0] < 0 or not np.all(positions[1:] > positions[:-1]):
        raise CaptureError(f"capture: {name} are not ascending from 0")


def _check_floats(name: str, array: npt.NDArray[Any], shape: tuple[int | None, ...]) -> None:
    _check_axes(name, array.shape, array.dtype, _FLOATS, shape)
    if not np.isfinite(array).all():
        raise CaptureError(f"capture: {name} holds a NaN or an infinity")


def _freeze(owner: object, name: str) -> None:
    """Replace an array attribute by a read-only view; the caller's own array stays as it was."""
    array = getattr(owner, name)
    if array is not None:
        view = np.asarray(array).view()
        view.flags.writeable = False
        object.__setattr__(owner, name, view)
