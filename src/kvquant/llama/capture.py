"""K and V of a real run: a text through llama-server with a float32 cache, its slot saved and taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvquant.errors import CaptureError
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.llama.state import SequenceState, StoredCache, StoredLayer, StoredRows, load_state
from kvquant.model.architectures import shape_of
from kvquant.model.capture import FloatArray, Int32Array, KVCapture, LayerAxes, LayerCapture
from kvquant.model.gguf_file import open_model
from kvquant.model.hparams import logit_scale
from kvquant.model.shape import LayerShape, ModelShape

CACHE_TYPE = "f32"
"""What the server stores while capturing: neither rounded nor, because it is not quantized, rotated."""


@dataclass(frozen=True)
class CaptureRequest:
    """What to run.

    programs: the folder of llama-server. n_ctx: tokens to make room for, None for as many as the text can be.
    n_threads: None leaves it to llama.cpp.
    """

    programs: Path
    model: Path
    text: str
    n_ctx: int | None = None
    n_threads: int | None = None


def capture_text(request: CaptureRequest) -> KVCapture:
    """Run the text through the model and return every layer's K and V; there are no queries in a saved slot.

    Raises CaptureError when the text does not fit or the model keeps no V, LlamaError for server trouble.
    """
    model = open_model(request.model)
    model.require_loadable()
    shape = shape_of(model)
    if not shape.kv_layers:
        raise CaptureError(f"{model.shown}: no layer keeps a K/V cache; there is nothing to capture")
    if shape.mla:
        raise CaptureError(f"{model.shown}: latent attention stores no V; there is nothing to capture")
    n_ctx = request.n_ctx or _roomy_context(request.text, shape)
    options = ServerOptions(
        request.model, n_ctx=n_ctx, k_type=CACHE_TYPE, v_type=CACHE_TYPE, n_threads=request.n_threads
    )
    with LlamaServer(request.programs, options) as server:
        server.completion(request.text, n_predict=0, cache_prompt=True)
        if server.kv_log().rotated:
            raise CaptureError(f"{model.shown}: llama-server rotates its K, which a capture must not hold")
        state = load_state(server.save_slot(), shape)
    return capture_of_state(
        state,
        shape,
        logit_scales={
            layer: logit_scale(model.header, shape.layers[layer].head_dim_k) for layer in shape.kv_layers
        },
        source=f"llama-server, {CACHE_TYPE} cache, {len(state.tokens)} tokens",
    )


def capture_of_state(
    state: SequenceState, shape: ModelShape, logit_scales: dict[int, float], source: str
) -> KVCapture:
    """Turn a saved sequence with a float32 cache into a capture without queries.

    logit_scales: of every layer that keeps a cache. Raises CaptureError when a layer is stored otherwise (its
    values would be rounded, and perhaps rotated) or has no V.
    """
    positions = max((np.sort(cache.positions) for cache in state.caches), key=len)
    layers = [
        _layer(
            stored,
            cache,
            positions,
            _axes(stored.layer, shape.layers[stored.layer], logit_scales[stored.layer]),
        )
        for cache in state.caches
        for stored in cache.layers
    ]
    return KVCapture(
        model=shape.name,
        arch=shape.arch,
        n_layer=shape.n_layer,
        source=source,
        positions=positions,
        layers=tuple(sorted(layers, key=lambda layer: layer.axes.layer)),
    )


def _roomy_context(text: str, shape: ModelShape) -> int:
    """Tokens the text cannot exceed: a token is at least a byte, and a few special ones surround it."""
    n_tokens = len(text.encode()) + 16
    return min(n_tokens, shape.n_ctx_train) if shape.n_ctx_train else n_tokens


def _axes(layer: int, shape: LayerShape, scale: float) -> LayerAxes:
    return LayerAxes(
        layer, shape.n_head, shape.n_head_kv, shape.head_dim_k, shape.head_dim_v, scale, shape.window
    )


def _layer(stored: StoredLayer, cache: StoredCache, positions: Int32Array, axes: LayerAxes) -> LayerCapture:
    if stored.v is None:
        raise CaptureError(f"layer {axes.layer} stores no V; there is nothing to capture")
    # Cells are reused as a window moves on, so rows need not lie in the order of their tokens.
    order = np.argsort(cache.positions)
    if not np.array_equal(cache.positions[order], positions[len(positions) - len(order) :]):
        raise CaptureError(f"layer {axes.layer} does not hold the last tokens of the sequence")
    return LayerCapture(
        axes,
        k=_heads(stored.k, order, axes.n_head_kv, axes.layer),
        v=_heads(stored.v, order, axes.n_head_kv, axes.layer),
    )


def _heads(rows: StoredRows, order: npt.NDArray[np.intp], n_head_kv: int, layer: int) -> FloatArray:
    """Values by head, float32 (n_kept, n_head_kv, head_dim)."""
    if rows.type != CACHE_TYPE:
        raise CaptureError(f"layer {layer} is stored as {rows.type}; a capture needs an {CACHE_TYPE} cache")
    return rows.values()[order].reshape(len(order), n_head_kv, -1)
