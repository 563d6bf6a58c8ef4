"""Proof: the series' cache types store what the package's formats make, and ask for what they need.

tq3 and tq2 hold what the cache's rotation has mixed; k5x3 and k4x2 hold keys that a transform has put in
order, each half of a block rotated by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvquant.errors import LlamaError
from kvquant.formats.hadamard import rotate
from kvquant.formats.registry import ORDERED_TYPES, get_format
from kvquant.formats.split import HALF
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.llama.state import GGML_TYPE_NAMES, load_state, parse_state
from kvquant.model.architectures import read_shape
from kvquant.transform import KVTransform, LayerTransform, write_transform
from kvquant.transform.order import BLOCK, PROVENANCE_KEY, places
from llama.proof import PATCHED, PROMPT, STOCK, generate, needs_both, needs_patched, run, small
from llama.test_proof_blocks import check_layer, float_run
from llama.test_proof_refusals import refusal
from llama.test_proof_state import check_goes_on, restored
from llama.transforms import half, random_transform, write_random
from write_random_gguf import RandomModel, write_random_gguf

Model = Callable[[str], Path]

LAYER = 2
NUMBER = next(number for number, name in GGML_TYPE_NAMES.items() if name == "tq3")
MIXED = "kv0:k=q8_0/v=tq2,kv1-:k=tq3/v=tq3"


def ordering(path: Path, model: Path, *, centred: bool = True) -> KVTransform:
    """Write a random transform that puts the dimensions of each head into places, of every layer."""
    random = random_transform(model, "centre and diagonal" if centred else "diagonal")
    layers = []
    for layer in random.layers:
        assert layer.forward is not None
        matrices = np.stack([np.diag(factors)[places(layer.head_dim)] for factors in layer.forward])
        layers.append(LayerTransform(layer.layer, layer.centre, half(matrices)))
    transform = KVTransform(random.model, tuple(layers), {**random.provenance, PROVENANCE_KEY: BLOCK})
    write_transform(transform, path)
    return transform


def with_transform(options: ServerOptions, path: Path) -> ServerOptions:
    return replace(options, extra=("--kv-transform", str(path), *options.extra))


@needs_patched
@pytest.mark.parametrize("type_name", ["tq3", "tq2"])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_rotated_types_store_the_reference_s_blocks(arch: str, type_name: str, proof_model: Model) -> None:
    model = proof_model(arch)
    shape = read_shape(model)
    options = small(model, k_type="f32", v_type="f32", kv_layers=f"{LAYER}:{type_name}")
    state = run(PATCHED, options, n_predict=0).state(shape)
    check_layer(state, float_run(PATCHED, model).state(shape), shape, LAYER, rotation=True)


@needs_patched
@pytest.mark.parametrize("type_name", ORDERED_TYPES)
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_ordered_types_store_keys_in_order_rotated_by_halves(
    arch: str, type_name: str, proof_model: Model, tmp_path: Path
) -> None:
    """llama.cpp sums products in another order: a value at a boundary may take its neighbour."""
    model = proof_model(arch)
    shape = read_shape(model)
    transform = ordering(tmp_path / "order.gguf", model)
    options = small(model, k_type="f32", v_type="f32", kv_layers=f"0:k={type_name}")
    state = run(PATCHED, with_transform(options, tmp_path / "order.gguf"), n_predict=0).state(shape)
    plain = float_run(PATCHED, model).state(shape)
    keys = plain.layers[0].k.values()
    here = transform.layers[0]
    heads = here.apply_k(keys.reshape(len(keys), here.n_head_kv, -1)).astype(np.float32)
    rows = np.asarray(rotate(heads.reshape(-1, here.head_dim), HALF)).reshape(keys.shape)
    stored = state.layers[0].k
    assert stored.type == type_name
    expected = get_format(type_name).quantize(rows)
    assert np.count_nonzero(expected != stored.rows) < 0.01 * expected.size
    lost = np.square(stored.values() - rows).sum() / np.square(rows).sum()
    assert lost < 0.2, "rows in another order, or not rotated, would be lost"


@needs_patched
def test_a_saved_slot_restores_and_goes_on(proof_model: Model, tmp_path: Path) -> None:
    model = proof_model("qwen3")
    ordering(tmp_path / "order.gguf", model)
    options = small(model, kv_layers="kv0:k=k5x3/v=tq2,kv1-:k=k4x2/v=tq3")
    check_goes_on(with_transform(options, tmp_path / "order.gguf"))


@needs_patched
@pytest.mark.parametrize("other", ["kv0:k=q8_0/v=tq2,kv1-:k=tq3/v=tq2", "*:q8_0", None])
def test_another_policy_refuses_it_by_name(other: str | None, proof_model: Model) -> None:
    model = proof_model("llama")
    saved = run(PATCHED, small(model, kv_layers=MIXED)).saved
    assert {layer.k.type for layer in parse_state(saved, read_shape(model)).layers} == {"q8_0", "tq3"}
    with pytest.raises(LlamaError, match=r"the saved state has tq|rotation"):
        restored(PATCHED, small(model, kv_layers=other), saved).stop()


@needs_both
def test_a_build_without_the_patch_refuses_it_clearly(proof_model: Model) -> None:
    model = proof_model("llama")
    saved = run(PATCHED, small(model, kv_layers="*:tq3")).saved
    assert STOCK is not None
    with LlamaServer(STOCK, small(model, k_type="q8_0", v_type="q8_0")) as server:
        (server.slot_folder / "saved").write_bytes(saved)
        with pytest.raises(LlamaError, match="Unable to restore slot"):
            server.restore_slot(name="saved")
        assert f"mismatched key type (8 != {NUMBER}, layer 0)" in server.log_text()


@needs_patched
def test_keys_rotated_by_halves_are_turned_by_a_context_shift(proof_model: Model, tmp_path: Path) -> None:
    """What is stored of the tokens that stay must decode to the turned keys."""
    model = proof_model("qwen3")
    shape = read_shape(model)
    transform = ordering(tmp_path / "order.gguf", model, centred=False)
    found = {}
    assert PATCHED is not None
    for policy in (None, "0:k=k5x3"):
        options = small(
            model, n_ctx=256, k_type="f32", v_type="f32", kv_layers=policy, extra=("--context-shift",)
        )
        with LlamaServer(PATCHED, with_transform(options, tmp_path / "order.gguf")) as server:
            generate(server, n_predict=60, prompt=PROMPT[:220])
            assert "slot context shift" in server.log_text()
            (cache,) = load_state(server.save_slot(), shape).caches
        rows = cache.layers[0].k.values()[np.argsort(cache.positions)[:64]]
        found[policy] = rows.reshape(-1, shape.layers[0].head_dim_k)
    here = transform.layers[0]
    plain = np.asarray(rotate(found[None], HALF))
    lost = np.square(found["0:k=k5x3"] - plain).sum() / np.square(plain).sum()
    assert here.head_dim == 128 and lost < 0.1


@needs_patched
@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("*:k=k5x3", "layer 0: K type k5x3 wants keys in the order"),
        ("1:v=k4x2", "layer 1: V type k4x2 is a type for K alone"),
    ],
)
def test_what_is_missing_is_said(policy: str, words: str, proof_model: Model) -> None:
    assert words in refusal(small(proof_model("llama"), kv_layers=policy))


@needs_patched
def test_a_transform_that_orders_nothing_is_not_enough(proof_model: Model, tmp_path: Path) -> None:
    model = proof_model("llama")
    write_random(tmp_path / "transform.gguf", model, "matrix")
    options = with_transform(small(model, kv_layers="1:k=k4x2"), tmp_path / "transform.gguf")
    assert "layer 1: K type k4x2 wants keys in the order" in refusal(options)


@needs_patched
@pytest.mark.parametrize("policy", ["*:tq3", "2:v=tq2"])
def test_without_rotation_there_are_no_rotated_types(policy: str, proof_model: Model) -> None:
    message = refusal(small(proof_model("llama"), kv_layers=policy, rotation=False))
    assert "wants the cache's rotation" in message


@needs_patched
def test_heads_that_no_block_divides(tmp_path: Path) -> None:
    model = write_random_gguf(
        tmp_path / "narrow.gguf", RandomModel(arch="llama", n_layer=3, head_dim=96, n_ff=64)
    )
    assert "layer 0: V type tq3 has blocks of 64" in refusal(small(model, kv_layers="*:k=q8_0/v=tq3"))
