"""Hypothesis strategies for model shapes, every kind of layer among them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from kvquant.model.shape import LayerShape, ModelShape, RecurrentState, WindowKind

HEAD_DIMS = (32, 64, 96, 128, 160, 256)
"""Multiples of every block size, so that every cache type fits."""


@st.composite
def attention_layers(draw: st.DrawFn, window: int = 0, stores_v: bool = True) -> LayerShape:
    """A layer with a cache, sliding or not when there is a window."""
    n_head_kv = draw(st.integers(1, 16))
    return LayerShape(
        n_head=n_head_kv * draw(st.integers(1, 8)),
        n_head_kv=n_head_kv,
        head_dim_k=draw(st.sampled_from(HEAD_DIMS)),
        head_dim_v=draw(st.sampled_from(HEAD_DIMS)),
        window=draw(st.sampled_from([0, window])),
        stores_v=stores_v,
    )


@st.composite
def model_shapes(draw: st.DrawFn) -> ModelShape:
    """Dense, sliding, latent, hybrid and sharing models of up to a dozen layers."""
    window = draw(st.sampled_from([0, 1, 128, 1024, 4096, 8192]))
    stores_v = draw(st.booleans())
    layers = draw(st.lists(attention_layers(window, stores_v), min_size=1, max_size=8))
    n_owning = len(layers)
    for source in draw(st.lists(st.integers(0, n_owning - 1), max_size=2)):
        layers.append(replace(layers[source], keeps_cache=False, shares_with=source))
    if draw(st.booleans()):
        layers.append(LayerShape(0, 0, 0, 0, keeps_cache=False, recurrent=True))
    if draw(st.booleans()):
        layers.append(replace(layers[0], keeps_cache=False, nextn=True))
    recurrent = any(layer.recurrent for layer in layers)
    kinds = [WindowKind.SLIDING, WindowKind.CHUNKED]
    return ModelShape(
        name=draw(st.text(max_size=8)),
        arch="drawn",
        n_ctx_train=draw(st.sampled_from([0, 1, 4096, 2**32 - 1])),
        layers=tuple(layers),
        window_kind=draw(st.sampled_from(kinds))
        if any(layer.window for layer in layers)
        else WindowKind.NONE,
        state=draw(st.sampled_from([None, RecurrentState(768, 4096)])) if recurrent else None,
        source=draw(st.text(max_size=8)),
    )
