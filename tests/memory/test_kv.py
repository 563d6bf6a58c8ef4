"""Cells, bytes and budgets: known values, what is refused, and what holds for every model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import FormatError, UsageError
from kvquant.formats.registry import UPSTREAM_TYPES
from kvquant.memory import (
    CacheCells,
    ContextOptions,
    cache_cells,
    kv_bytes,
    largest_context,
    memory_document,
    memory_of,
    total_bytes,
)
from kvquant.memory.cells import MAX_CONTEXT, MAX_SEQUENCES, PADDING
from kvquant.model.presets import load_preset, preset_names
from kvquant.model.shape import LayerShape, ModelShape, RecurrentState, WindowKind
from kvquant.policy import ResolvedPolicy, parse_policy
from memory.checks import additive, is_largest, mib, monotone
from model.strategies import model_shapes

MIB = 2**20
DENSE = LayerShape(n_head=8, n_head_kv=2, head_dim_k=64, head_dim_v=64)


def resolved(shape: ModelShape, text: str = "*:f16", default: str = "f16") -> ResolvedPolicy:
    return parse_policy(text).resolve(shape, default, default)


def model(*layers: LayerShape, **fields: Any) -> ModelShape:
    return ModelShape(**{"name": "test", "arch": "test", "n_ctx_train": 4096, "layers": layers, **fields})


# -- known values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "n_ctx", "text", "default", "expected"),
    [
        # What a published write-up logged for Qwen3.5 and took for uniform q4_0.
        ("qwen3.5-2b", 32768, "0-10:q8_0", "q4_0", 140 * MIB),
        ("qwen3.5-4b", 16384, "0-10:q8_0", "q4_0", 176 * MIB),
        ("qwen3.5-2b", 32768, "*:q4_0", "f16", 108 * MIB),
        ("qwen3.5-4b", 16384, "*:q4_0", "f16", 144 * MIB),
        # 32 layers x 8 heads x 128 values x K and V x 2 bytes = 128 KiB per token.
        ("llama-8b", 8192, "*:f16", "f16", 1024 * MIB),
        ("llama-8b", 8192, "*:q8_0", "f16", 544 * MIB),
        # One row of 576 f16 values per layer and token, and no V.
        ("deepseek-v2-lite", 4096, "*:f16", "f16", 27 * 576 * 2 * 4096),
    ],
)
def test_known_totals(preset: str, n_ctx: int, text: str, default: str, expected: int) -> None:
    shape = load_preset(preset)
    assert kv_bytes(shape, resolved(shape, text, default), n_ctx=n_ctx).kv_bytes == expected


@pytest.mark.parametrize(
    ("options", "window", "expected"),
    [
        (ContextOptions(1), 0, CacheCells(256, 256, 1, 256, 0)),
        (ContextOptions(256), 0, CacheCells(256, 256, 1, 256, 0)),
        (ContextOptions(257), 0, CacheCells(512, 512, 1, 512, 0)),
        # 1000 rounds to 1024, a third of that to 512, and the context follows.
        (ContextOptions(1000, n_parallel=3), 0, CacheCells(1536, 512, 3, 512, 0)),
        (ContextOptions(1000, n_parallel=3, kv_unified=True), 0, CacheCells(1024, 1024, 1, 1024, 0)),
        (ContextOptions(100, n_parallel=256), 0, CacheCells(65536, 256, 256, 256, 0)),
        # A window keeps window + batch tokens, rounded up, times the sequences that share a buffer.
        (ContextOptions(8192), 1024, CacheCells(8192, 8192, 1, 8192, 1536)),
        (ContextOptions(8192, n_parallel=4), 1024, CacheCells(8192, 2048, 4, 2048, 1536)),
        (ContextOptions(8192, n_parallel=4, kv_unified=True), 1024, CacheCells(8192, 8192, 1, 8192, 4608)),
        (ContextOptions(8192, n_ubatch=1), 1024, CacheCells(8192, 8192, 1, 8192, 1280)),
        (ContextOptions(8192, n_batch=1), 1024, CacheCells(8192, 8192, 1, 8192, 1280)),
        (ContextOptions(8192, swa_full=True), 1024, CacheCells(8192, 8192, 1, 8192, 8192)),
        (ContextOptions(1024), 1024, CacheCells(1024, 1024, 1, 1024, 1024)),
        # The batch is limited by the context as it was asked for.
        (ContextOptions(300), 100, CacheCells(512, 512, 1, 512, 512)),
        (ContextOptions(150), 100, CacheCells(256, 256, 1, 256, 256)),
    ],
)
def test_cells(options: ContextOptions, window: int, expected: CacheCells) -> None:
    assert cache_cells(options, window) == expected


def test_bytes_per_layer_and_cache() -> None:
    sliding = replace(DENSE, window=256)
    shape = model(sliding, DENSE, sliding, window_kind=WindowKind.SLIDING)
    memory = kv_bytes(shape, resolved(shape, "0:q8_0,1:k=f32/v=q4_0"), n_ctx=4096, n_ubatch=256)
    assert [layer.n_cells for layer in memory.layers] == [512, 4096, 512]
    assert [layer.k_bytes for layer in memory.layers] == [512 * 136, 4096 * 512, 512 * 256]
    assert [layer.v_bytes for layer in memory.layers] == [512 * 136, 4096 * 72, 512 * 256]
    assert memory.window_bytes == 512 * (2 * 136 + 2 * 256)
    assert memory.base_bytes == 4096 * (512 + 72)
    assert memory.kv_bytes == memory.window_bytes + memory.base_bytes
    assert memory.recurrent_bytes == 0


def test_recurrent_states_are_a_row_per_sequence() -> None:
    recurrent = LayerShape(0, 0, 0, 0, keeps_cache=False, recurrent=True)
    shape = model(recurrent, DENSE, recurrent, state=RecurrentState(10, 100))
    memory = kv_bytes(shape, resolved(shape), n_ctx=4096, n_parallel=3)
    assert memory.recurrent_bytes == 2 * 3 * 110 * 4
    assert kv_bytes(replace(shape, state=None), resolved(shape), n_ctx=4096).recurrent_bytes is None


def test_without_flash_attention_v_is_as_wide_as_the_widest() -> None:
    wide = replace(DENSE, head_dim_v=128, keeps_cache=False, nextn=True)
    shape = model(DENSE, wide)
    on = kv_bytes(shape, resolved(shape), n_ctx=256)
    off = kv_bytes(shape, resolved(shape), n_ctx=256, flash_attn=False)
    assert on.layers[0].v_bytes == 256 * 128 * 2
    assert off.layers[0].v_bytes == 256 * 256 * 2
    assert off.layers[0].k_bytes == on.layers[0].k_bytes


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n_ctx": 0}, "a context of 0 tokens"),
        ({"n_ctx": -1}, "a context of -1 tokens"),
        ({"n_ctx": MAX_CONTEXT + 1}, "llama.cpp takes 1 to"),
        ({"n_parallel": 0}, "0 parallel"),
        ({"n_parallel": MAX_SEQUENCES + 1}, "257 parallel"),
        ({"n_batch": 0}, "a batch of 0"),
        ({"n_ubatch": -1}, "a ubatch of -1"),
    ],
)
def test_options_llama_cpp_refuses(options: dict[str, int], reason: str) -> None:
    shape = model(DENSE)
    with pytest.raises(UsageError, match=reason):
        kv_bytes(shape, resolved(shape), **{"n_ctx": 256, **options})


def test_combinations_llama_cpp_refuses() -> None:
    odd = model(replace(DENSE, head_dim_k=48))
    with pytest.raises(FormatError, match=r"layer 0: .* heads of 48, so K of this model can only be f32"):
        kv_bytes(odd, resolved(odd, "*:q8_0"), n_ctx=256)
    dense = model(DENSE)
    with pytest.raises(UsageError, match="only with flash attention"):
        kv_bytes(dense, resolved(dense, "*:v=q8_0"), n_ctx=256, flash_attn=False)
    latent = model(replace(DENSE, stores_v=False))
    with pytest.raises(UsageError, match="give both the same type"):
        kv_bytes(latent, resolved(latent, "*:k=q8_0"), n_ctx=256)
    with pytest.raises(UsageError, match="another shape"):
        kv_bytes(model(DENSE, DENSE), resolved(dense), n_ctx=256)
    huge = model(replace(DENSE, window=2**24), window_kind=WindowKind.SLIDING)
    with pytest.raises(UsageError, match="more than llama"):
        kv_bytes(huge, resolved(huge), n_ctx=256, n_parallel=256, kv_unified=True)


# -- what holds for every model ------------------------------------------------------------------------------

options = st.builds(
    ContextOptions,
    n_ctx=st.one_of(st.sampled_from([1, 255, 256, 257, 4096, 2**20]), st.integers(1, 2**18)),
    n_parallel=st.sampled_from([1, 2, 3, 4, 7, 64, 256]),
    kv_unified=st.booleans(),
    swa_full=st.booleans(),
    n_batch=st.sampled_from([1, 64, 2048]),
    n_ubatch=st.sampled_from([1, 100, 512, 4096]),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelShape, ResolvedPolicy, ContextOptions]:
    """A model, a policy that gives each layer types of its own, and options."""
    shape = draw(model_shapes())
    types = st.sampled_from(UPSTREAM_TYPES)
    rules = []
    for layer in shape.kv_layers:
        k = draw(types)
        rules.append(f"{layer}:k={k}/v={k if shape.mla else draw(types)}")
    return shape, resolved(shape, ",".join(rules)), draw(options)


def alone(shape: ModelShape, policy: ResolvedPolicy, kv_index: int) -> tuple[ModelShape, ResolvedPolicy]:
    """The model in which only the layer at ``kv_index`` keeps a cache; the others stay as layers."""
    kept = shape.kv_layers[kv_index]
    layers = tuple(
        layer if index == kept else replace(layer, keeps_cache=False, shares_with=None)
        for index, layer in enumerate(shape.layers)
    )
    return replace(shape, layers=layers), replace(
        policy, layers=(replace(policy.layers[kv_index], kv_index=0),)
    )


@given(cases())
def test_additive_over_layers(case: tuple[ModelShape, ResolvedPolicy, ContextOptions]) -> None:
    shape, policy, options = case
    parts = [memory_of(*alone(shape, policy, i), options) for i in range(len(policy.layers))]
    assert not additive(memory_of(shape, policy, options), parts)


@given(cases(), st.lists(st.integers(1, 2**18), min_size=2, max_size=8))
def test_monotone_in_the_context(
    case: tuple[ModelShape, ResolvedPolicy, ContextOptions], points: list[int]
) -> None:
    shape, policy, options = case
    near = [point + shift for point in points for shift in (0, 1, PADDING)]
    assert not monotone(lambda n: total_bytes(memory_of(shape, policy, replace(options, n_ctx=n))), near)


@given(cases())
def test_bytes_follow_from_cells_and_bits(case: tuple[ModelShape, ResolvedPolicy, ContextOptions]) -> None:
    shape, policy, options = case
    document = memory_document(shape, policy, "test", options)
    assert document.total.kv_bytes == memory_of(shape, policy, options).kv_bytes
    for entry in document.layers:
        layer = shape.layers[entry.layer]
        for side, width in ((entry.k, layer.n_embd_k), (entry.v, layer.n_embd_v)):
            if side is not None:
                assert side.bytes == entry.n_cells * width * side.bits_per_value / 8


@given(cases(), st.floats(0.1, 1e6))
def test_the_largest_context_is_the_largest(
    case: tuple[ModelShape, ResolvedPolicy, ContextOptions], factor: float
) -> None:
    shape, policy, options = case
    step = PADDING * (1 if options.kv_unified else options.n_parallel)

    def cost(n: int) -> int:
        return total_bytes(memory_of(shape, policy, replace(options, n_ctx=n)))

    budget = int(cost(step) * factor)
    if cost(step) > budget:
        with pytest.raises(UsageError, match="smallest context"):
            largest_context(shape, policy, budget, options)
        return
    found = largest_context(shape, policy, budget, options)
    assert not is_largest(cost, found, step, MAX_CONTEXT, budget)
    # What was found is what llama.cpp would make of it: rounding it changes nothing.
    assert memory_of(shape, policy, replace(options, n_ctx=found)).cells.n_ctx == found


def test_a_cache_that_stops_growing_fits_any_context() -> None:
    shape = model(replace(DENSE, window=256), window_kind=WindowKind.SLIDING)
    most = kv_bytes(shape, resolved(shape), n_ctx=MAX_CONTEXT).kv_bytes
    assert largest_context(shape, resolved(shape), most) == MAX_CONTEXT


@given(st.sampled_from(preset_names()), st.sampled_from(UPSTREAM_TYPES), st.integers(1, 10**6))
def test_every_preset_in_every_type(name: str, type_name: str, n_ctx: int) -> None:
    shape = load_preset(name)
    memory = kv_bytes(shape, resolved(shape, f"*:{type_name}"), n_ctx=n_ctx)
    assert len(memory.layers) == len(shape.kv_layers)
    assert memory.kv_bytes > 0


# -- the checks themselves -----------------------------------------------------------------------------------


def test_additive_notices_a_cost_that_is_not_a_layer_s() -> None:
    shape = model(DENSE, DENSE)
    policy, options = resolved(shape), ContextOptions(256)
    parts = [memory_of(*alone(shape, policy, i), options) for i in (0, 1)]
    first = parts[0].layers[0]
    larger = replace(parts[0], layers=(replace(first, v_bytes=first.v_bytes + 1),))
    assert not additive(memory_of(shape, policy, options), parts)
    assert additive(memory_of(shape, policy, options), [larger, parts[1]])
    assert additive(memory_of(shape, policy, options), parts[:1])


def test_monotone_notices_a_fall() -> None:
    assert not monotone(lambda n: n // 256, [1, 2, 256, 300])
    assert monotone(lambda n: n if n != 300 else 5, [1, 2, 256, 300])


@pytest.mark.parametrize("found", [0, 256, 384, 768, 1024])
def test_is_largest_notices_any_other_answer(found: int) -> None:
    assert not is_largest(lambda n: n, 512, 256, 4096, 600)
    assert is_largest(lambda n: n, found, 256, 4096, 600)


def test_sizes_are_rounded_as_llama_cpp_rounds_them() -> None:
    assert mib(0) == "0.00"
    assert mib(10486) == "0.01"
    assert mib(5242) == "0.00"
    # In float32 a size just below 1 GiB can no longer be told from it.
    assert mib(2**30 - 1) == "1024.00"
