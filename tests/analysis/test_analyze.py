"""The analysis as a whole: types, bytes, baselines, rotation, JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from analysis.strategies import HYBRID, SMALL
from analysis.test_sources import small_capture
from kvquant.analysis import BASELINES, Analysis, Sampling, analyze
from kvquant.errors import FormatError, KVQuantError, PolicyError, UsageError
from kvquant.memory import kv_bytes
from kvquant.model.shape import LayerShape
from kvquant.policy import parse_policy

FEW = Sampling(n_tokens=32, n_query=4)


def test_layers_carry_the_policys_types_and_the_memorys_bytes() -> None:
    analysis = analyze("1-2:k=q8_0/v=q4_0", shape=SMALL, n_ctx=1000, default_k="q5_0", sampling=FEW)
    resolved = parse_policy("1-2:k=q8_0/v=q4_0").resolve(SMALL, "q5_0", "f16")
    memory = kv_bytes(SMALL, resolved, n_ctx=1000)
    assert [(x.k.type, x.v.type) for x in analysis.layers] == [
        ("q5_0", "f16"),
        ("q8_0", "q4_0"),
        ("q8_0", "q4_0"),
        ("q5_0", "f16"),
    ]
    assert [(x.k.bytes, x.v.bytes) for x in analysis.layers] == [
        (x.k_bytes, x.v_bytes) for x in memory.layers
    ]
    assert analysis.total.kv_bytes == memory.kv_bytes
    assert analysis.layers[1].k.bits_per_value == 8.5
    assert [x.k.rotated for x in analysis.layers] == [True] * 4
    assert [x.v.rotated for x in analysis.layers] == [False, True, True, False]


def test_layers_without_a_cache_are_not_listed() -> None:
    analysis = analyze("*:q8_0", shape=HYBRID, sampling=FEW)
    assert [(x.layer, x.kv_index) for x in analysis.layers] == [(0, 0), (2, 1)]


def test_a_pruned_layer_keeps_its_number_and_costs_nothing() -> None:
    """A layer without KV heads owns a cache of no rows, as DeciLM's layers without attention do."""
    first, _, third, fourth = SMALL.layers
    pruned = replace(SMALL, layers=(first, LayerShape(0, 0, 64, 64), third, fourth))
    analysis = analyze("kv2-:q4_0", shape=pruned, default_k="q8_0", default_v="q8_0", sampling=FEW)
    assert [(x.layer, x.kv_index, x.k.type) for x in analysis.layers] == [
        (0, 0, "q8_0"),
        (2, 2, "q4_0"),
        (3, 3, "q4_0"),
    ]
    memory = kv_bytes(pruned, parse_policy("kv2-:q4_0").resolve(pruned, "q8_0", "q8_0"), n_ctx=4096)
    assert analysis.total.kv_bytes == memory.kv_bytes
    assert analysis.total.layer_bytes == tuple(x.n_bytes for x in memory.layers if x.n_bytes)


def test_the_policy_equals_its_own_baseline() -> None:
    analysis = analyze("q4_0", shape=SMALL, sampling=FEW)
    assert replace(analysis.baselines["q4_0"]) == analysis.total
    assert list(analysis.baselines) == list(BASELINES)


def test_a_mixed_policy_takes_each_layers_error_from_its_type() -> None:
    analysis = analyze("0-1:q8_0,2-:q4_0", shape=SMALL, sampling=FEW)
    q8_0, q4_0 = (analysis.baselines[name].layer_attn_output_rel_error for name in ("q8_0", "q4_0"))
    assert analysis.total.layer_attn_output_rel_error == q8_0[:2] + q4_0[2:]


def test_rotation_modes() -> None:
    on, off, both = (
        analyze("q4_0", shape=SMALL, rotation=mode, baselines=(), sampling=FEW)
        for mode in ("on", "off", "both")
    )
    assert both.total.errors == on.total.errors and both.total.unrotated == off.total.errors
    assert on.total.unrotated is None and off.total.unrotated is None
    assert on.total.errors != off.total.errors
    assert both.layers[0].unrotated == off.layers[0].errors
    assert not off.layers[0].k.rotated


def test_research_formats_are_measured_and_said_not_to_run() -> None:
    analysis = analyze("tq_mse_4b", shape=SMALL, baselines=("q4_0",), sampling=FEW)
    assert not analysis.total.runnable and analysis.baselines["q4_0"].runnable
    assert analysis.total.errors == analysis.total.unrotated


def test_a_capture_is_analysed_on_its_own_shape() -> None:
    analysis = analyze("*:q8_0", capture=small_capture(), baselines=("f16",))
    assert (analysis.model, analysis.source.kind, len(analysis.layers)) == ("small", "capture", 4)
    assert analysis.total.errors.attn_output_rel_error is not None
    assert 0 < analysis.total.errors.attn_output_rel_error < 0.05


def test_the_seed_decides_everything() -> None:
    one, again, other = (analyze("q4_0", shape=SMALL, seed=seed, sampling=FEW) for seed in (5, 5, 6))
    assert one == again
    assert one.total.errors != other.total.errors


def test_progress_counts_layers() -> None:
    seen: list[tuple[int, int]] = []
    analyze("q8_0", shape=SMALL, baselines=(), sampling=FEW, progress=lambda *done: seen.append(done))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_policy_warnings_are_passed_on() -> None:
    (warning,) = analyze("2-9:q8_0", shape=SMALL, baselines=(), sampling=FEW).warnings
    assert "past the end" in warning


def test_heads_that_are_not_rotated_are_named() -> None:
    odd = replace(SMALL, layers=(LayerShape(4, 2, 96, 64),) * 2)
    (warning,) = analyze("q8_0", shape=odd, baselines=(), sampling=FEW).warnings
    assert "layers 0-1: quantized K stored without rotation, heads of 96" in warning
    assert analyze("q8_0", shape=odd, baselines=(), rotation="off", sampling=FEW).warnings == ()
    assert analyze("f16", shape=odd, baselines=(), sampling=FEW).warnings == ()


def test_a_type_that_cannot_store_the_heads() -> None:
    odd = replace(SMALL, layers=(LayerShape(4, 2, 80, 80),) * 2)
    analysis = analyze("tq_mse_4b", shape=odd, baselines=("f16", "q8_0"), sampling=FEW)
    assert list(analysis.baselines) == ["f16"]
    assert analysis.warnings == (analysis.warnings[0],) and "baseline q8_0 left out" in analysis.warnings[0]
    with pytest.raises(FormatError, match="do not divide heads of 80"):
        analyze("q8_0", shape=odd, baselines=(), sampling=FEW)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(PolicyError):
        analyze("0-1:q9_0", shape=SMALL)
    with pytest.raises(PolicyError):
        analyze("q8_0", shape=SMALL, baselines=("no_such",))
    with pytest.raises(UsageError, match="rotation 'some' is unknown; known: on, off, both"):
        analyze("q8_0", shape=SMALL, rotation="some")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        analyze("q8_0", shape=SMALL, n_ctx=0)


def test_json_has_the_keys_others_rely_on() -> None:
    document = json.loads(analyze("0:q8_0,1-:q4_0", shape=SMALL, n_ctx=4096, sampling=FEW).to_json())
    assert document["policy"] == "0:q8_0,1-:q4_0" and document["n_ctx"] == 4096
    layer = document["layers"][1]
    assert {"layer", "kv_index", "k", "v", "attn_output_rel_error"} <= layer.keys()
    for side in ("k", "v"):
        assert {"type", "bits_per_value", "bytes", "mse", "nmse_db"} <= layer[side].keys()
    assert {"kv_bytes", "kv_bytes_f16", "ratio_vs_f16"} <= document["total"].keys()
    assert (
        document["total"]["ratio_vs_f16"] == document["total"]["kv_bytes"] / document["total"]["kv_bytes_f16"]
    )
    assert document["baselines"]["q8_0"]["ratio_vs_f16"] == pytest.approx(8.5 / 16)
    assert {"k_mse", "v_nmse_db", "attn_kl", "attn_output_rel_error"} <= document["baselines"]["q4_0"].keys()


def test_json_writes_what_is_not_finite_as_null() -> None:
    capture = small_capture()
    k = capture.layers[0].k.copy()
    k[0, 0, 0] = np.float32(1e6)
    first = replace(capture.layers[0], k=k)
    analysis = analyze(
        "f16", capture=replace(capture, layers=(first, *capture.layers[1:])), baselines=("f32",)
    )
    document = json.loads(analysis.to_json())
    assert document["layers"][0]["k"]["mse"] is None and document["total"]["attn_output_rel_error"] is None
    assert document["baselines"]["f32"]["k_nmse_db"] is None
    assert Analysis.from_json(analysis.to_json()) == analysis


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema_version": 1}', '{"schema_version": 2}'])
def test_other_documents_are_refused(text: str) -> None:
    with pytest.raises(KVQuantError):
        Analysis.from_json(text)


def test_a_type_that_nothing_orders_is_a_warning() -> None:
    found = analyze("0:k=k4x2/v=tq3", baselines=(), sampling=FEW)
    assert any("layer 0: k4x2 needs a transform that orders" in line for line in found.warnings)
    (line,) = (line for line in analyze("2:v=k5x3", baselines=(), sampling=FEW).warnings if "k5x3" in line)
    assert line == "layer 2: k5x3 is a type for K alone; V has no order to put it in"
