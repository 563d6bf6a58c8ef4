"""Layer samples and analyses for the property suites, edge values by construction."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from kvquant.analysis import (
    Analysis,
    LayerErrors,
    LayerResult,
    LayerSample,
    MeanErrors,
    SideErrors,
    SourceInfo,
    StoredSide,
    Summary,
)
from kvquant.memory.document import DefaultTypes
from kvquant.model.shape import LayerShape, ModelShape, WindowKind

EDGE_VALUES = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    -1e-45,
    1e-38,
    6e4,
    -6e4,
    65520.0,
    1e30,
    float(np.nextafter(0.5, 0)),
)
"""Zeros, ties, denormals, and values beyond what f16 holds."""

values = st.one_of(st.sampled_from(EDGE_VALUES), st.floats(-8, 8, width=32), st.floats(-1e4, 1e4, width=32))
queries = st.one_of(st.sampled_from((0.0, 1.0, -1.0, 1e-38)), st.floats(-4, 4, width=32))


@st.composite
def layer_samples(draw: st.DrawFn) -> LayerSample:
    """Small layers: 1-6 tokens, 1-2 KV heads, groups of 1-3, widths that ggml blocks and rotation take."""
    n_tokens = draw(st.integers(1, 6))
    n_head_kv = draw(st.integers(1, 2))
    n_head = n_head_kv * draw(st.integers(1, 3))
    width_k, width_v = draw(st.sampled_from((32, 64))), draw(st.sampled_from((32, 64)))
    n_query = draw(st.integers(1, 3))

    def array(shape: tuple[int, ...], elements: st.SearchStrategy[float]) -> np.ndarray:
        return draw(npst.arrays(np.float32, shape, elements=elements, fill=st.sampled_from((0.0, 1.0))))

    at = draw(st.lists(st.integers(0, n_tokens - 1), min_size=n_query, max_size=n_query, unique=False))
    return LayerSample(
        k=array((n_tokens, n_head_kv, width_k), values),
        v=array((n_tokens, n_head_kv, width_v), values),
        q=array((n_query, n_head, width_k), queries),
        positions=np.arange(n_tokens, dtype=np.int64),
        query_positions=np.array(at, dtype=np.int64),
        logit_scale=width_k**-0.5,
        window=draw(st.integers(0, n_tokens)),
    )


measures = st.none() | st.floats(0, 1e6)
_bytes = st.integers(1, 2**40)
sides = st.builds(SideErrors, measures, measures, measures)
layer_errors = st.builds(LayerErrors, sides, sides, measures, measures, measures)
means = st.builds(MeanErrors, *[measures] * 7)
stored_sides = st.builds(
    StoredSide,
    *[measures] * 3,
    type=st.sampled_from(("f16", "q8_0", "tq_mse_3b")),
    bits_per_value=st.floats(1, 32),
    bytes=_bytes,
    rotated=st.booleans(),
)
layer_results = st.builds(
    LayerResult,
    *[measures] * 3,
    k=stored_sides,
    v=stored_sides,
    layer=st.integers(0, 99),
    kv_index=st.integers(0, 99),
    unrotated=st.none() | layer_errors,
)
summaries = st.builds(
    Summary,
    *[measures] * 7,
    policy=st.text(max_size=8),
    runnable=st.booleans(),
    kv_bytes=_bytes,
    kv_bytes_f16=_bytes,
    unrotated=st.none() | means,
    layer_attn_output_rel_error=st.lists(measures, max_size=4).map(tuple),
    layer_bytes=st.lists(_bytes, max_size=4).map(tuple),
)
infos = st.builds(
    SourceInfo,
    kind=st.sampled_from(("profile", "capture")),
    name=st.text(max_size=8),
    description=st.text(max_size=8),
    queries=st.sampled_from(("synthetic", "captured")),
    seed=st.none() | st.integers(0, 2**63),
    n_tokens=st.integers(1, 9),
    n_query=st.integers(1, 9),
    n_head_kv=st.just("1 of 2"),
    n_head=st.just("2 of 4"),
)
analyses = st.builds(
    Analysis,
    policy=st.text(max_size=8),
    default=st.just(DefaultTypes("f16", "q8_0")),
    model=st.text(max_size=8),
    n_ctx=st.integers(1, 2**20),
    rotation=st.sampled_from(("on", "off", "both")),
    source=infos,
    layers=st.lists(layer_results, max_size=3).map(tuple),
    total=summaries,
    baselines=st.dictionaries(st.text(max_size=6), summaries, max_size=2),
    verdict=st.text(max_size=20),
    warnings=st.lists(st.text(max_size=8), max_size=2).map(tuple),
)

SMALL = ModelShape("small", "llama", 4096, (LayerShape(4, 2, 64, 64),) * 4)
"""Four equal layers, small enough for tests that run a whole analysis."""

HYBRID = ModelShape(
    "hybrid",
    "test",
    4096,
    (
        LayerShape(4, 2, 64, 64, window=8),
        LayerShape(0, 0, 0, 0, keeps_cache=False, recurrent=True),
        LayerShape(4, 1, 128, 64),
        LayerShape(4, 2, 64, 64, keeps_cache=False, shares_with=0, window=8),
    ),
    window_kind=WindowKind.SLIDING,
)
"""A sliding-window layer, a recurrent one, one with other widths, and one that shares the first's cache."""
