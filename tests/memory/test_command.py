"""`kvquant memory` and `kvquant shape` as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvquant.cli.main import kvquant
from kvquant.errors import KVQuantError
from kvquant.model.architectures import read_shape
from kvquant.model.shape_json import shape_from_json
from write_random_gguf import RandomModel, write_random_gguf


def run(*arguments: str) -> Result:
    return CliRunner().invoke(kvquant, arguments)


def failure(*arguments: str) -> KVQuantError:
    error = run(*arguments).exception
    assert isinstance(error, KVQuantError), error
    assert "\n" not in str(error)
    return error


def document(*arguments: str) -> dict[str, Any]:
    result = run("memory", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_json_keys_that_others_use() -> None:
    found = document("--shape", "qwen3.5-2b", "--ctx", "32768", "--layers", "0-10:Q8_0", "--default", "q4_0")
    assert found["policy"] == "0-10:q8_0"
    assert found["default"] == {"k": "q4_0", "v": "q4_0"}
    assert found["n_ctx"] == 32768
    assert [(layer["layer"], layer["kv_index"]) for layer in found["layers"]][:2] == [(3, 0), (7, 1)]
    assert found["layers"][0]["k"] == {"type": "q8_0", "bits_per_value": 8.5, "bytes": 32768 * 544}
    assert found["layers"][2]["v"] == {"type": "q4_0", "bits_per_value": 4.5, "bytes": 32768 * 288}
    assert found["total"]["kv_bytes"] == 140 * 2**20
    assert found["total"]["kv_bytes_f16"] == 384 * 2**20
    assert found["total"]["ratio_vs_f16"] == 140 / 384
    assert found["baselines"]["q4_0"]["kv_bytes"] == 108 * 2**20
    assert set(found["baselines"]) == {"f16", "q8_0", "q4_0"}


def test_defaults_are_those_of_llama_server() -> None:
    """Four sequences in one buffer unless --parallel is given; then apart unless --kv-unified is."""
    server = document("--shape", "gemma-3-4b", "--ctx", "16384")["context"]
    assert (server["n_parallel"], server["kv_unified"], server["n_ubatch"]) == (4, True, 512)
    apart = document("--shape", "gemma-3-4b", "--ctx", "16384", "--parallel", "2")["context"]
    assert (apart["n_parallel"], apart["kv_unified"], apart["n_ctx_seq"]) == (2, False, 8192)


def test_a_model_file_and_its_exported_shape_agree(tmp_path: Path) -> None:
    path = write_random_gguf(tmp_path / "model.gguf", RandomModel(arch="qwen35", n_layer=8))
    exported = tmp_path / "shape.json"
    exported.write_text(run("shape", "--model", str(path), "--json").stdout, encoding="utf-8")
    assert shape_from_json(exported.read_text(encoding="utf-8")) == read_shape(path)
    by_file = document("--model", str(path), "--ctx", "0")
    assert by_file["n_ctx"] == 32768
    assert by_file == document("--shape", str(exported), "--ctx", "0")


def test_budget() -> None:
    found = document("--shape", "llama-8b", "--budget", "256MiB", "--default", "q8_0")
    assert found["budget_bytes"] == 256 * 2**20
    # 68 KiB per token: 3855 tokens, rounded down to whole steps.
    assert found["n_ctx"] == 3840
    text = run("memory", "--shape", "llama-8b", "--budget", "256MiB", "--default", "q8_0").stdout
    assert "3840 tokens is the longest context within 256.00 MiB, the model was trained on 8192" in text


def test_text_names_layers_totals_and_states(tmp_path: Path) -> None:
    path = write_random_gguf(tmp_path / "model.gguf", RandomModel(arch="qwen35", n_layer=8))
    lines = run(
        "memory", "--model", str(path), "--ctx", "1000", "--default", "k=q8_0/v=f16"
    ).stdout.splitlines()
    assert "policy *:k=q8_0/v=f16, default k=q8_0/v=f16, 1000 tokens, 4 sequences in one buffer" in lines[0]
    assert lines[2].split() == ["3", "0", "1024", "q8_0", "139264", "f16", "262144"]
    assert lines[4].split()[:3] == ["this", "policy", "802816"]
    assert lines[-1].split()[:2] == ["recurrent", "466944"]
    assert "in K" in run("memory", "--shape", "deepseek-v3", "--ctx", "256").stdout
    windowed = run("memory", "--shape", "gpt-oss-20b", "--ctx", "4096").stdout
    assert "in sliding-window layers" in windowed


def test_research_formats_are_computed_only() -> None:
    arguments = ("--shape", "llama-8b", "--ctx", "256", "--layers", "0:tq_mse_4b,1-:q8_0")
    assert document(*arguments)["total"]["runnable"] is False
    assert run("memory", *arguments).stdout.splitlines()[-1].endswith("no cache of type tq_mse_4b")
    assert document("--shape", "llama-8b", "--ctx", "256")["total"]["runnable"] is True


def test_warnings_go_to_stderr() -> None:
    result = run(
        "memory", "--shape", "qwen3.5-2b", "--ctx", "256", "--layers", "0-1:q8_0,20-40:q4_0", "--json"
    )
    assert result.exit_code == 0
    assert result.stderr.count("kvquant: warning:") == 2
    assert len(json.loads(result.stdout)["warnings"]) == 2


@pytest.mark.parametrize(
    ("arguments", "exit_code", "reason"),
    [
        (("memory", "--ctx", "256"), 2, "no model given"),
        (("memory", "--shape", "llama-8b"), 2, "give --ctx N or --budget SIZE"),
        (("memory", "--shape", "llama-8b", "--ctx", "1", "--budget", "1"), 2, "not both"),
        (("memory", "--shape", "llama-8b", "--model", "x", "--ctx", "1"), 2, "nor a known model"),
        (("memory", "--shape", "nope", "--ctx", "1"), 1, "unknown shape 'nope'"),
        (("memory", "--model", "nope.gguf", "--ctx", "1"), 1, "No such file"),
        (("memory", "--shape", "llama-8b", "--ctx", "-1"), 2, "--ctx: '-1' is not a number of tokens"),
        (("memory", "--shape", "llama-8b", "--budget", "1KiB"), 2, "the smallest context"),
        (("memory", "--shape", "llama-8b", "--budget", "lots"), 2, "not a byte count"),
        (("memory", "--shape", "llama-8b", "--ctx", "1", "--default", "q9"), 2, "known: f32"),
        (("memory", "--shape", "llama-8b", "--ctx", "1", "--default", "f16,3:q8_0"), 2, "neither a type"),
        (("memory", "--shape", "phi-3-mini-4k", "--ctx", "1", "--parallel", "0"), 2, "0 parallel"),
        (("shape",), 2, "no model given"),
    ],
)
def test_failures(arguments: tuple[str, ...], exit_code: int, reason: str) -> None:
    error = failure(*arguments)
    assert error.exit_code == exit_code
    assert reason in str(error)


def test_shape_as_text() -> None:
    listed = run("shape", "--list").stdout
    assert "qwen3.5-2b          24 layers,   6 with a cache  Qwen3.5 2B" in listed
    text = run("shape", "--shape", "gemma-3-4b").stdout
    assert "Gemma 3 4B (gemma3): 34 layers, 34 with a cache, trained on 131072 tokens" in text
    assert "  0-4  8 heads, 4 KV heads of 256, window 1024" in text
    assert "K 576 and V 512, V is a part of K" in run("shape", "--shape", "deepseek-v3").stdout


def test_shape_names_layers_without_a_cache_of_their_own(tmp_path: Path) -> None:
    model = RandomModel(arch="gemma4", n_layer=8, n_shared_kv=4)
    path = write_random_gguf(tmp_path / "shared.gguf", model)
    assert "reads the cache of layer 2" in run("shape", "--model", str(path)).stdout
    path = write_random_gguf(tmp_path / "hybrid.gguf", RandomModel(arch="qwen35", n_layer=5, n_nextn=1))
    text = run("shape", "--model", str(path)).stdout
    assert "recurrent, no cache" in text
    assert "nextn layer, no cache" in text
    assert "each recurrent layer keeps 768 + 4096 float32 values per sequence" in text
