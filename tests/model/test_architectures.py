"""The rules of each architecture, on headers written by hand.

What llama.cpp makes of such files is the business of tests/memory/test_against_llama.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvquant.errors import ModelFileError, ShapeError
from kvquant.model.architectures import RULES, read_shape
from kvquant.model.gguf_types import ValueType
from kvquant.model.shape import ModelShape, RecurrentState, WindowKind
from kvquant.shipped import checkout_root
from model.gguf_bytes import GgufFile, arch_keys, int_array, number
from write_random_gguf import ARCHITECTURES, RandomModel, write_random_gguf

SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 32, "ssm__group_count": 2}


def architectures_of(page: str) -> list[str]:
    """Return the names in the first column of the page's table of rules, in its order."""
    rows = page.partition("| architectures | what decides |\n|---|---|\n")[2].partition("\n\n")[0]
    return [name for row in rows.splitlines() for name in row.split("|")[1].strip().split(", ")]


def test_the_page_says_once_what_decides_for_each_architecture() -> None:
    page = ((checkout_root() or Path()) / "docs/memory.md").read_text(encoding="utf-8")
    assert sorted(architectures_of(page)) == sorted(RULES)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def reader(arch: str, n_layer: int = 4, **changes: Any) -> ModelShape:
        path = tmp_path / "model.gguf"
        path.write_bytes(GgufFile(arch_keys(arch, n_layer, **changes)).encoded())
        return read_shape(path)

    return reader


def windows(shape: ModelShape) -> list[int]:
    return [layer.window for layer in shape.layers]


def test_heads_and_widths(read: Any) -> None:
    shape = read("llama")
    assert [(layer.n_head, layer.n_head_kv) for layer in shape.layers] == [(4, 2)] * 4
    assert {(layer.head_dim_k, layer.head_dim_v) for layer in shape.layers} == {(64, 64)}
    assert shape.n_ctx_train == 4096
    assert shape.name == "model.gguf"
    wide = read("llama", attention__key_length=96, attention__value_length=32)
    assert (wide.layers[0].n_embd_k, wide.layers[0].n_embd_v) == (192, 64)


def test_kv_heads_default_to_heads_and_may_differ_per_layer(read: Any) -> None:
    assert read("llama", attention__head_count_kv=None).layers[0].n_head_kv == 4
    per_layer = read("qwen3moe", attention__head_count_kv=int_array([1, 2, 4, 2]))
    assert [layer.n_head_kv for layer in per_layer.layers] == [1, 2, 4, 2]
    per_layer = read("llama", attention__head_count=int_array([4, 4, 2, 4], ValueType.UINT32))
    assert [layer.n_head for layer in per_layer.layers] == [4, 4, 2, 4]


@pytest.mark.parametrize("arch", ["llama", "mistral3", "phi3", "qwen2", "starcoder2"])
def test_a_window_that_llama_cpp_does_not_apply(read: Any, arch: str) -> None:
    shape = read(arch, attention__sliding_window=512)
    assert shape.window_kind is WindowKind.NONE
    assert windows(shape) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("arch", "n_layer", "given", "expected"),
    [
        ("gemma2", 4, {}, [4096, 0, 4096, 0]),
        ("gemma2", 4, {"attention__sliding_window": 99}, [99, 0, 99, 0]),
        ("gemma3", 7, {"attention__sliding_window": 512}, [512] * 5 + [0, 512]),
        ("gemma3", 4, {"attention__sliding_window": 5, "attention__sliding_window_pattern": 2}, [5, 0, 5, 0]),
        ("gemma3", 4, {"attention__sliding_window": 5, "attention__sliding_window_pattern": 0}, [5] * 4),
        ("gemma3", 4, {"attention__sliding_window": 0}, [0] * 4),
        ("gemma3", 4, {}, [0] * 4),
        ("cohere2", 5, {"attention__sliding_window": 7}, [7, 7, 7, 0, 7]),
        ("olmo2", 4, {}, [0] * 4),
        ("olmo2", 4, {"attention__sliding_window": 7}, [7, 7, 7, 0]),
        ("gpt-oss", 3, {"attention__sliding_window": 128}, [128, 0, 128]),
        ("llama4", 5, {}, [8192, 8192, 8192, 0, 8192]),
        ("llama4", 4, {"attention__sliding_window": 5}, [8192, 8192, 8192, 0]),
        ("llama4", 4, {"attention__sliding_window": 0}, [0] * 4),
        ("exaone4", 4, {"attention__sliding_window": 7}, [0] * 4),
        ("exaone4", 64, {"attention__sliding_window": 7}, [7, 7, 7, 0] * 16),
        (
            "gemma3",
            4,
            {"attention__sliding_window": 5, "attention__sliding_window_pattern": int_array([0, 1])},
            [0, 5, 0, 0],
        ),
    ],
)
def test_sliding_windows(
    read: Any, arch: str, n_layer: int, given: dict[str, Any], expected: list[int]
) -> None:
    shape = read(arch, n_layer, **given)
    assert windows(shape) == expected
    assert shape.window == max(expected)
    kind = WindowKind.CHUNKED if arch == "llama4" else WindowKind.SLIDING
    assert shape.window_kind is (kind if any(expected) else WindowKind.NONE)


def gemma4_keys(**changes: Any) -> dict[str, Any]:
    return {
        "attention__sliding_window": 512,
        "attention__sliding_window_pattern": int_array([1, 0, 1, 0], ValueType.BOOL),
        "attention__key_length": 128,
        "attention__value_length": 128,
        "attention__key_length_swa": 64,
        "attention__value_length_swa": 64,
        **changes,
    }


def test_shared_caches_and_widths_of_sliding_layers(read: Any) -> None:
    shape = read("gemma4", **gemma4_keys(attention__shared_kv_layers=2))
    assert [layer.head_dim_k for layer in shape.layers] == [64, 128, 64, 128]
    assert shape.kv_layers == (0, 1)
    assert [layer.shares_with for layer in shape.layers] == [None, None, 0, 1]
    assert read("gemma4", **gemma4_keys()).kv_layers == (0, 1, 2, 3)
    with pytest.raises(ModelFileError, match="leaves 1 layers with a cache; 2 are needed"):
        read("gemma4", **gemma4_keys(attention__shared_kv_layers=3))
    with pytest.raises(ModelFileError, match="only one of them has a sliding window"):
        swapped = int_array([0, 1, 0, 1])
        read(
            "gemma4", **gemma4_keys(attention__shared_kv_layers=2, attention__sliding_window_pattern=swapped)
        )


def test_gemma3n_shares_from_layer_20(read: Any) -> None:
    shape = read("gemma3n", 25, attention__sliding_window=512)
    assert shape.kv_layers == tuple(range(20))
    assert [layer.shares_with for layer in shape.layers[20:]] == [18, 18, 18, 18, 19]


def test_latent_attention(read: Any) -> None:
    lengths = {"attention__key_length": 576, "attention__value_length": 512, "attention__head_count_kv": 1}
    shape = read("deepseek2", attention__key_length_mla=192, attention__value_length_mla=128, **lengths)
    assert shape.mla
    assert (shape.layers[0].n_embd_k, shape.layers[0].n_embd_v) == (576, 0)
    older = read("deepseek2", **lengths)
    assert not older.mla
    assert (older.layers[0].n_embd_k, older.layers[0].n_embd_v) == (576, 512)


@pytest.mark.parametrize("arch", ["qwen35", "qwen35moe", "qwen3next"])
def test_gated_delta_nets(read: Any, arch: str) -> None:
    shape = read(arch, 8, **SSM)
    assert shape.kv_layers == (3, 7)
    assert [layer.recurrent for layer in shape.layers] == [True, True, True, False] * 2
    assert shape.state == RecurrentState(3 * (128 + 2 * 2 * 32), 32 * 128)
    assert read(arch, 4, full_attention_interval=2, **SSM).kv_layers == (1, 3)
    assert read(arch, 4, attention__recurrent_layers=int_array([0, 1, 1, 0]), **SSM).kv_layers == (0, 3)
    with pytest.raises(ModelFileError, match="full_attention_interval is 0"):
        read(arch, full_attention_interval=0, **SSM)
    with pytest.raises(ModelFileError, match="3 items for 4 layers"):
        read(arch, attention__recurrent_layers=int_array([0, 1, 1]), **SSM)


def test_nextn_layers_keep_no_cache(read: Any) -> None:
    plain = read("glm4moe", 5, nextn_predict_layers=1)
    assert plain.kv_layers == (0, 1, 2, 3)
    assert [layer.nextn for layer in plain.layers] == [False] * 4 + [True]
    hybrid = read("qwen35", 9, nextn_predict_layers=1, **SSM)
    assert hybrid.kv_layers == (3, 7)
    assert hybrid.n_recurrent == 6
    with pytest.raises(ModelFileError, match="nextn layers"):
        read("glm4moe", nextn_predict_layers=4)


@pytest.mark.parametrize("arch", ["lfm2", "lfm2moe", "granitehybrid", "jamba"])
def test_layers_without_kv_heads_are_recurrent(read: Any, arch: str) -> None:
    shape = read(arch, attention__head_count_kv=int_array([0, 2, 0, 2]), shortconv__l_cache=3, **SSM)
    assert shape.kv_layers == (1, 3)
    expected = {
        "lfm2": RecurrentState(256 * 2, 0),
        "lfm2moe": RecurrentState(256 * 2, 0),
        "granitehybrid": RecurrentState(3 * (128 + 2 * 2 * 32), 32 * 128),
        "jamba": RecurrentState(3 * 128, 32 * 128),
    }
    assert shape.state == expected[arch]


def test_lfm2_slides_in_every_attention_layer(read: Any) -> None:
    heads = int_array([0, 2, 0, 2])
    shape = read("lfm2", attention__head_count_kv=heads, shortconv__l_cache=3, attention__sliding_window=64)
    assert windows(shape) == [0, 64, 0, 64]


def test_layers_that_are_both_or_neither(read: Any) -> None:
    both = read("falcon-h1", **SSM)
    assert both.kv_layers == (0, 1, 2, 3)
    assert both.n_recurrent == 4
    one_each = read(
        "nemotron_h",
        attention__head_count_kv=int_array([0, 0, 2, 0]),
        feed_forward_length=int_array([0, 9, 0, 9]),
        **SSM,
    )
    assert one_each.kv_layers == (2,)
    assert [layer.recurrent for layer in one_each.layers] == [True, False, False, False]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block_count": None}, "block_count is missing"),
        ({"block_count": 0}, "block_count is 0"),
        ({"block_count": 513}, "block_count is 513"),
        ({"block_count": "4"}, "block_count is a string"),
        ({"block_count": 4.0}, "block_count is a float32"),
        ({"block_count": number(ValueType.INT32, 4)}, "block_count is a int32"),
        ({"block_count": number(ValueType.UINT64, 4)}, "block_count is a uint64"),
        ({"block_count": int_array([4])}, "block_count is an array of 1 int32"),
        ({"embedding_length": None}, "embedding_length is missing"),
        ({"context_length": None}, "context_length is missing"),
        ({"attention__head_count": None}, "both must be positive"),
        ({"attention__head_count": 0}, "both must be positive"),
        ({"attention__head_count_kv": 0}, "no KV heads"),
        ({"attention__head_count_kv": int_array([2, -2, 2, 2])}, "negative item -2"),
        ({"attention__head_count_kv": int_array([2, 2])}, "2 items for 4 layers"),
        ({"attention__head_count_kv": int_array([2] * 2000)}, "2000 items"),
        ({"attention__head_count_kv": int_array([2] * 4, ValueType.FLOAT32)}, "an array of 4 float32"),
        ({"attention__key_length": 0}, "both must be positive"),
        ({"attention__key_length": 2**32 - 1}, "head_dim_k is"),
        ({"attention__head_count": 2**32 - 1}, "must be from"),
        ({"attention__key_length": float("nan")}, "a float32"),
    ],
)
def test_contradictions_are_file_errors(read: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        read("llama", **changes)


@pytest.mark.parametrize(
    ("arch", "changes", "reason"),
    [
        ("gemma2", {"attention__sliding_window": 0}, "sliding_window is 0"),
        ("cohere2", {}, "attention.sliding_window is missing"),
        (
            "gemma3",
            {"attention__sliding_window": 5, "attention__sliding_window_pattern": 1},
            "no sliding-window layer",
        ),
        ("gemma4", gemma4_keys(attention__sliding_window_pattern=2), "takes an array of integers"),
        ("gemma4", gemma4_keys(attention__key_length_swa=None), "key_length_swa is missing"),
        ("gemma4", gemma4_keys(attention__shared_kv_layers=5), "2 are needed"),
        ("qwen35", {}, "ssm.conv_kernel is missing"),
        ("qwen35", {**SSM, "ssm__inner_size": 2**31}, "recurrent state"),
    ],
)
def test_contradictions_within_rules(read: Any, arch: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        read(arch, **changes)


@pytest.mark.parametrize("arch", ["deepseek4", "minimax-m3", "newmodel", "x" * 1000])
def test_an_unknown_architecture_says_what_to_do(read: Any, arch: str) -> None:
    with pytest.raises(ShapeError, match=r"no memory rules for architecture .*--shape FILE\.json"):
        read(arch)


@pytest.mark.parametrize("architecture", [None, "", 3, int_array([1])])
def test_a_file_without_architecture(tmp_path: Path, architecture: Any) -> None:
    path = tmp_path / "model.gguf"
    keys = {} if architecture is None else {"general.architecture": architecture}
    path.write_bytes(GgufFile(keys).encoded())
    with pytest.raises(ModelFileError, match="does not name its architecture"):
        read_shape(path)


@pytest.mark.parametrize(
    ("given", "shown"),
    [("My Model", "My Model"), ("two\nlines", "model.gguf"), ("x" * 101, "model.gguf"), (3, "model.gguf")],
)
def test_the_model_s_own_name(tmp_path: Path, given: Any, shown: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GgufFile({**arch_keys("llama"), "general.name": given}).encoded())
    assert read_shape(path).name == shown


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_random_models_are_read(arch: str, tmp_path: Path) -> None:
    n_layer = {"gemma3n": 21}.get(arch, 4)
    model = RandomModel(arch=arch, n_layer=n_layer, n_head=2, n_head_kv=1, head_dim=32, n_ff=32)
    shape = read_shape(write_random_gguf(tmp_path / "model.gguf", model))
    assert shape.arch == arch
    assert shape.n_layer == n_layer
    assert shape.kv_layers


def test_the_same_random_model_is_the_same_file(tmp_path: Path) -> None:
    model = RandomModel(n_layer=1, n_ff=32)
    files = [write_random_gguf(tmp_path / name, model).read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    other = write_random_gguf(tmp_path / "c", RandomModel(n_layer=1, n_ff=32, seed=1)).read_bytes()
    assert other != files[0]
