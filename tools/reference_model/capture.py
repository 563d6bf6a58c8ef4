"""K, V and Q of the reference model on a text, as a capture file holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvquant.errors import CaptureError
from kvquant.model.capture import KVCapture, LayerAxes, LayerCapture
from kvquant.reference.tokenizer import encode
from reference_model.network import ReferenceModel, model_shape


@torch.inference_mode()
def capture(
    model: ReferenceModel, text: str, query_positions: Sequence[int], *, half: bool = False
) -> KVCapture:
    """Return what every layer writes for ``text``, and the queries at ``query_positions`` (ascending).

    ``half`` keeps float16, which is what an f16 cache would hold and half the size. Raises CaptureError when
    a position is not one of the text's.
    """
    tokens = torch.tensor([encode(text)])
    n_tokens = tokens.shape[1]
    if not query_positions or min(query_positions) < 0 or max(query_positions) >= n_tokens:
        raise CaptureError(
            f"queries at {list(query_positions)} of a text of {n_tokens} tokens; "
            f"name positions in 0..{n_tokens - 1}"
        )
    shape = model_shape(model.config)
    layers: list[LayerCapture] = []

    def keep(layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        sizes = shape.layers[layer]
        axes = LayerAxes(
            layer,
            sizes.n_head,
            sizes.n_head_kv,
            sizes.head_dim_k,
            sizes.head_dim_v,
            logit_scale=1 / math.sqrt(sizes.head_dim_k),
        )
        layers.append(LayerCapture(axes, *(_array(x[0], half) for x in (k, v, q[:, list(query_positions)]))))
        return k, v

    model.hidden(tokens, keep)
    return KVCapture(
        model=shape.name,
        arch=shape.arch,
        n_layer=shape.n_layer,
        source="kvquant.torch, float32",
        positions=np.arange(n_tokens, dtype=np.int32),
        layers=tuple(layers),
        queries="captured",
        q_positions=np.array(query_positions, dtype=np.int32),
    )


def _array(x: Tensor, half: bool) -> npt.NDArray[np.float32] | npt.NDArray[np.float16]:
    return x.half().numpy() if half else x.contiguous().numpy()
