"""The file of a transform: a GGUF without a model, which `--kv-transform FILE` of the patched llama.cpp
reads.

general.architecture        "kv-transform"
kv-transform.version        uint32, 1
kv-transform.model_sha256   the model file it was fitted on
kv-transform.model_arch     its architecture
kv-transform.model_bytes    uint64, bytes of all its tensors
kv-transform.n_layer        uint32, its layers
kv-transform.digest         `KVTransform.digest`
kv-transform.provenance     JSON object of texts and numbers
kv-transform.order          uint32, 64 where every layer's matrix orders the dimensions of keys (`order`)

layer.N.centre    float16, (n_head_kv, head_dim), row-major
layer.N.forward   float16, M: the same shape for a diagonal, (n_head_kv, head_dim, head_dim) for a matrix;
                  absent for a centre alone
layer.N.query     float32, M⁻ᵀ, of the shape of M
layer.N.gain_db   float32, (1,), absent when unknown
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from kvquant.documents import parse_json, to_json
from kvquant.errors import KVQuantError, TransformError
from kvquant.files import write_atomic
from kvquant.transform.order import PROVENANCE_KEY
from kvquant.transform.transform import KVTransform, LayerTransform, ModelId

ARCHITECTURE = "kv-transform"
VERSION = 1

#: More than any model needs; a header that claims more is not read.
MAX_BYTES = 4 << 30

_TENSOR = re.compile(r"layer\.(0|[1-9][0-9]{0,5})\.(centre|forward|query|gain_db)")


def write_transform(transform: KVTransform, path: str | Path) -> None:
    """Write ``transform`` as a sidecar, whole, or leave the old file.

    Raises TransformError for numbers that float16 cannot hold exactly (`fit_layer` makes none) and
    KVQuantError when the file cannot be written.
    """
    from gguf import GGUFWriter  # only here: it takes a tenth of a second to load

    with tempfile.TemporaryDirectory(prefix="kvquant-") as folder:
        name = Path(folder) / "transform.gguf"
        writer = GGUFWriter(os.fspath(name), ARCHITECTURE)
        writer.add_uint32(f"{ARCHITECTURE}.version", VERSION)
        writer.add_string(f"{ARCHITECTURE}.model_sha256", transform.model.sha256)
        writer.add_string(f"{ARCHITECTURE}.model_arch", transform.model.arch)
        writer.add_uint64(f"{ARCHITECTURE}.model_bytes", transform.model.weight_bytes)
        writer.add_uint32(f"{ARCHITECTURE}.n_layer", transform.model.n_layer)
        writer.add_string(f"{ARCHITECTURE}.digest", transform.digest)
        writer.add_string(f"{ARCHITECTURE}.provenance", to_json(dict(transform.provenance), indent=None))
        if PROVENANCE_KEY in transform.provenance:
            writer.add_uint32(f"{ARCHITECTURE}.order", int(transform.provenance[PROVENANCE_KEY]))
        for layer in transform.layers:
            for key, array in _arrays(layer).items():
                writer.add_tensor(f"layer.{layer.layer}.{key}", array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_atomic(path, name.read_bytes())


def read_transform(path: str | Path) -> KVTransform:
    """Read a sidecar. Raises TransformError, one line, for anything that is not a whole, consistent one."""
    from gguf import GGUFReader

    try:
        n_bytes = Path(path).stat().st_size
        if not Path(path).is_file() or n_bytes > MAX_BYTES:
            raise TransformError(f"{path}: is not a transform file; kvquant calibrate writes one")
        reader = GGUFReader(os.fspath(path))
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    except OSError as error:
        raise TransformError(
            f"{path}: cannot be read: {error.strerror}; kvquant calibrate writes one"
        ) from error
    except KVQuantError:
        raise
    except Exception as error:  # gguf-py raises whatever a broken header leads it to
        raise TransformError(f"{path}: not a whole GGUF file ({type(error).__name__}: {error})") from error
    return _built(fields, tensors, str(path))


def _arrays(layer: LayerTransform) -> dict[str, Any]:
    arrays: dict[str, Any] = {"centre": _half(layer.centre, layer.layer)}
    if layer.forward is not None:
        arrays["forward"] = _half(layer.forward, layer.layer)
        arrays["query"] = layer.query
    if layer.gain_db is not None:
        arrays["gain_db"] = np.array([layer.gain_db], dtype=np.float32)
    return arrays


def _half(array: Any, layer: int) -> Any:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), array):
        raise TransformError(f"transform of layer {layer}: its numbers are not float16; round them first")
    return half


def _built(fields: dict[str, Any], tensors: dict[str, Any], where: str) -> KVTransform:
    if fields.get("general.architecture") != ARCHITECTURE:
        raise TransformError(
            f"{where}: holds {str(fields.get('general.architecture'))[:40]!r}, not a K transform; "
            "kvquant calibrate writes one"
        )
    version = fields.get(f"{ARCHITECTURE}.version")
    if version != VERSION:
        raise TransformError(f"{where}: version {version}, this kvquant reads {VERSION}; calibrate again")
    layers: dict[int, dict[str, Any]] = {}
    for name, array in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise TransformError(f"{where}: unknown tensor {name[:60]!r}; a later kvquant wrote it")
        layers.setdefault(int(match[1]), {})[match[2]] = array
    try:
        transform = KVTransform(
            model=ModelId(
                str(fields[f"{ARCHITECTURE}.model_sha256"]),
                str(fields[f"{ARCHITECTURE}.model_arch"]),
                int(fields[f"{ARCHITECTURE}.n_layer"]),
                int(fields[f"{ARCHITECTURE}.model_bytes"]),
            ),
            layers=tuple(_layer(number, layers[number]) for number in sorted(layers)),
            provenance=parse_json(fields[f"{ARCHITECTURE}.provenance"], where, error=TransformError),
        )
        digest = fields[f"{ARCHITECTURE}.digest"]
    except (KeyError, TypeError, ValueError) as error:
        raise TransformError(f"{where}: is incomplete ({error}); calibrate again") from error
    except TransformError as error:
        raise TransformError(f"{where}: {error}") from error
    if transform.digest != digest:
        raise TransformError(f"{where}: its content does not match its digest; calibrate again")
    return transform


def _layer(number: int, arrays: dict[str, Any]) -> LayerTransform:
    centre, forward, gain = arrays["centre"], arrays.get("forward"), arrays.get("gain_db")
    if any(array.dtype != np.float16 for array in (centre, forward) if array is not None):
        raise TransformError(f"transform of layer {number}: centre and matrix must be float16")
    layer = LayerTransform(number, centre, forward, None if gain is None else float(gain[0]))
    query = arrays.get("query")
    if query is None or layer.query is None:
        same = query is layer.query
    else:
        same = np.array_equal(query, layer.query)
    if not same:
        raise TransformError(f"transform of layer {number}: its query matrix is not the inverse of the other")
    return layer
