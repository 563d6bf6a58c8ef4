"""How large the projections behind K and V are: what some methods take for the importance of a layer."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from kvquant.errors import ModelFileError
from kvquant.model.gguf_file import GgufModel
from kvquant.model.gguf_header import TensorInfo

_NAME = re.compile(r"blk\.(\d+)\.attn_([kv])\.weight")

MAX_WEIGHT_BYTES = 2**28


def projection_norms(model: GgufModel) -> dict[tuple[int, str], float]:
    """Return the Frobenius norm of each layer's ``attn_k.weight`` and ``attn_v.weight``, by (layer, side).

    Fused projections, types that the gguf package does not decode and tensors above MAX_WEIGHT_BYTES are left
    out. Raises ModelFileError when the file cannot be read.
    """
    found: dict[tuple[int, str], float] = {}
    for shard in model.shards:
        try:
            with shard.path.open("rb") as file:
                for tensor in shard.tensors:
                    match = _NAME.fullmatch(tensor.name)
                    norm = None if match is None else _norm(file, tensor)
                    if match is not None and norm is not None:
                        found[int(match[1]), match[2]] = norm
        except OSError as error:
            raise ModelFileError(f"{shard.shown} cannot be read: {error.strerror}") from error
    return found


def _norm(file: BinaryIO, tensor: TensorInfo) -> float | None:
    if tensor.n_bytes is None or not 0 < tensor.n_bytes <= MAX_WEIGHT_BYTES:
        return None
    # The header's reader has checked that these bytes lie inside the file.
    file.seek(tensor.offset)
    data = np.frombuffer(file.read(tensor.n_bytes), np.uint8)
    rows = int(np.prod(tensor.ne[1:]))
    if len(data) != tensor.n_bytes or not rows:
        return None
    try:
        values = dequantize(data.reshape(rows, -1), GGMLQuantizationType(tensor.type_number))
    except (NotImplementedError, ValueError):
        return None
    norm = float(np.linalg.norm(values.astype(np.float64)))
    return norm if np.isfinite(norm) else None
