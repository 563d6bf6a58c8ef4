"""Proof: a transform that does not belong to a model, or cannot be exact on it, is refused by name, and so is
a saved state of another transform.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvquant.errors import LlamaError
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.processes.background import clean_environment
from llama.proof import PATCHED, PROMPT, generate, needs_patched, run, small
from llama.test_proof_refusals import refusal
from llama.test_proof_state import check_goes_on
from llama.test_proof_transform import difference, exact, rounding
from llama.transforms import POWERS, change_file, with_float_weights, write_random
from write_random_gguf import RandomModel, write_random_gguf

Model = Callable[[str], Path]


def with_transform(model: Path, path: Path, **changes: Any) -> ServerOptions:
    return small(model, extra=("--kv-transform", str(path)), **changes)


# ---- files ----


@pytest.fixture
def good(proof_model: Model, tmp_path: Path) -> Path:
    """A file that belongs to the small llama, of all layers."""
    path = tmp_path / "transform.gguf"
    write_random(path, proof_model("llama"), "centre and diagonal")
    return path


def nan(path: Path) -> None:
    values = np.ones((2, 64), np.float16)
    values[1, 3] = np.nan
    change_file(path, tensors={"layer.2.forward": values})


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (Path.unlink, "cannot be opened"),
    "empty": (lambda path: path.write_bytes(b"") and None, "is no GGUF file"),
    "text": (lambda path: path.write_text("no") and None, "is no GGUF file"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-4000]) and None, "is cut short"),
    "something else": (
        lambda path: change_file(path, keys={"general.architecture": "llama"}),
        "is a GGUF file of something else",
    ),
    "no version": (
        lambda path: change_file(path, keys={"kv-transform.version": None}),
        r"has no kv-transform\.version",
    ),
    "later version": (
        lambda path: change_file(path, keys={"kv-transform.version": 2}),
        "has version 2, this program reads version 1",
    ),
    "other architecture": (
        lambda path: change_file(path, keys={"kv-transform.model_arch": "qwen2"}),
        "was made for another model, a qwen2 of 5 layers",
    ),
    "other depth": (
        lambda path: change_file(path, keys={"kv-transform.n_layer": 6}),
        "was made for another model, a llama of 6 layers",
    ),
    "other weights": (
        lambda path: change_file(path, keys={"kv-transform.model_bytes": 12345}),
        "was made for another file of this kind of model, with 12345 bytes of weights",
    ),
    "other heads": (
        lambda path: change_file(path, tensors={"layer.1.centre": np.zeros((4, 32), np.float16)}),
        r"layer\.1\.centre has another shape than this model's keys",
    ),
    "NaN": (nan, r"layer\.2\.forward holds NaN or infinity"),
    "no inverse": (
        lambda path: change_file(path, tensors={"layer.3.query": None}),
        r"layer\.3\.query is not the inverse of layer\.3\.forward",
    ),
    "wrong inverse": (
        lambda path: change_file(path, tensors={"layer.3.query": np.ones((2, 64), np.float32)}),
        r"layer\.3\.query is not the inverse of layer\.3\.forward",
    ),
    "a layer too many": (
        lambda path: change_file(path, tensors={"layer.5.centre": np.zeros((2, 64), np.float16)}),
        r"holds layer\.5\.centre, which this model or this program has no use for",
    ),
    "unknown tensor": (
        lambda path: change_file(path, tensors={"layer.1.permutation": np.zeros((2, 64), np.float16)}),
        r"holds layer\.1\.permutation",
    ),
}


@needs_patched
@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_does_not_fit(name: str, good: Path, proof_model: Model) -> None:
    damage, words = DAMAGE[name]
    damage(good)
    message = refusal(with_transform(proof_model("llama"), good))
    assert re.search(f"--kv-transform: .*{words}", message), message


@needs_patched
def test_a_good_file_is_taken(good: Path, proof_model: Model) -> None:
    assert PATCHED is not None
    with LlamaServer(PATCHED, with_transform(proof_model("llama"), good)) as server:
        assert re.search(r"kv_transform += .*transform\.gguf \(5 layers, ", server.log_text())


# ---- models ----


def of_layers(path: Path, model: Path, kind: str = "centre and diagonal") -> Path:
    write_random(path, model, kind)
    return path


@needs_patched
def test_latent_attention(proof_model: Model, tmp_path: Path) -> None:
    model = proof_model("deepseek2")
    message = refusal(with_transform(model, of_layers(tmp_path / "t.gguf", model)))
    assert "--kv-transform is not supported here: MLA models keep compressed keys" in message


@needs_patched
def test_a_layer_that_keeps_no_keys(proof_model: Model, tmp_path: Path) -> None:
    """Layer 4 of the small gemma4 reads the keys of another."""
    model = proof_model("gemma4")
    path = tmp_path / "t.gguf"
    write_random(path, model, "diagonal", layers=[0, 5])
    assert "names layer 5, which keeps no keys here" in refusal(with_transform(model, path))


@needs_patched
@pytest.mark.parametrize(
    ("arch", "words"), [("gemma2", "caps its logits"), ("gpt-oss", "has attention sinks")]
)
def test_where_something_else_sees_the_logits_only_centring_is_refused(
    arch: str, words: str, tmp_path: Path
) -> None:
    small_one = RandomModel(arch=arch, n_layer=4, n_ff=128)
    model = with_float_weights(write_random_gguf(tmp_path / "model.gguf", small_one))
    message = refusal(exact(model, of_layers(tmp_path / "t.gguf", model)))
    assert words in message and "calibrate with a kind that does not centre" in message
    plain = run(PATCHED, exact(model))
    for kind in ("diagonal", "matrix"):
        changed = run(PATCHED, exact(model, of_layers(tmp_path / "t.gguf", model, kind)))
        assert difference(plain.answer, changed.answer) < rounding(arch)


# ---- draft models ----

DRAFT = RandomModel(arch="llama", n_layer=2, n_ff=64, seed=7)


@needs_patched
def test_a_draft_model_has_its_own_file_or_none(proof_model: Model, tmp_path: Path) -> None:
    assert PATCHED is not None
    model = proof_model("llama")
    good = of_layers(tmp_path / "good.gguf", model, POWERS)
    draft = write_random_gguf(tmp_path / "draft.gguf", DRAFT)
    own = of_layers(tmp_path / "own.gguf", draft, POWERS)
    speculative = ("--model-draft", str(draft), "--spec-type", "draft-simple")
    found: dict[str, tuple[dict[str, Any], int]] = {}
    for name, more in {
        "without": (),
        "target": ("--kv-transform", str(good)),
        "both": ("--kv-transform", str(good), "--spec-draft-kv-transform", str(own)),
    }.items():
        with LlamaServer(PATCHED, exact(model, extra=(*speculative, *more))) as server:
            answer = generate(server, n_predict=12)
            found[name] = answer, len(re.findall("kv_transform += ", server.log_text()))
    assert [count for _, count in found.values()] == [0, 1, 2]
    for name in ("target", "both"):
        assert difference(found["without"][0], found[name][0]) == 0
    with pytest.raises(LlamaError, match="was made for another model"):
        LlamaServer(
            PATCHED, exact(model, extra=(*speculative, "--spec-draft-kv-transform", str(good)))
        ).stop()


# ---- saved states ----


@pytest.fixture(scope="module")
def conditions(proof_model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServerOptions]:
    """What a slot may be saved under, by name."""
    model = proof_model("llama")
    folder = tmp_path_factory.mktemp("transforms")
    named: dict[str, ServerOptions] = {"none": small(model), "none, q8_0": small(model, kv_layers="*:q8_0")}
    for name, seed, layers in (("one", 1, None), ("two", 2, None), ("part of one", 1, [0, 1])):
        write_random(folder / f"{name}.gguf", model, "centre and diagonal", seed=seed, layers=layers)
        named[name] = with_transform(model, folder / f"{name}.gguf")
    named["one, q8_0"] = with_transform(model, folder / "one.gguf", kv_layers="*:q8_0")
    return named


@pytest.fixture(scope="module")
def saved_under(conditions: dict[str, ServerOptions]) -> dict[str, bytes]:
    return {name: run(PATCHED, options).saved for name, options in conditions.items()}


@needs_patched
@pytest.mark.parametrize("restoring", ["none", "none, q8_0", "one", "two", "part of one", "one, q8_0"])
def test_a_slot_loads_under_the_transform_it_was_saved_with_and_no_other(
    restoring: str, conditions: dict[str, ServerOptions], saved_under: dict[str, bytes]
) -> None:
    assert PATCHED is not None
    with LlamaServer(PATCHED, conditions[restoring]) as server:
        for saving, saved in saved_under.items():
            (server.slot_folder / "saved").write_bytes(saved)
            if saving == restoring:
                assert server.restore_slot(name="saved")["n_restored"] > 0
                continue
            with pytest.raises(LlamaError) as refused:
                server.restore_slot(name="saved")
            same_types = ("q8_0" in saving) is ("q8_0" in restoring)
            reason = "under a transform|under another --kv-transform" if same_types else "rotation"
            assert re.search(f"Unable to restore slot: .*({reason})", str(refused.value)), refused.value


@needs_patched
@pytest.mark.parametrize("arch", ["llama", "qwen35"])
def test_a_restored_slot_goes_on_as_the_saved_one(arch: str, proof_model: Model, tmp_path: Path) -> None:
    model = proof_model(arch)
    check_goes_on(with_transform(model, of_layers(tmp_path / "t.gguf", model), kv_layers="*:q8_0"))


# ---- the other programs ----


def output(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert PATCHED is not None
    argv = [str(PATCHED / program), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, env=clean_environment(), timeout=300)


@needs_patched
def test_llama_bench_compares_with_and_without(good: Path, proof_model: Model) -> None:
    model = ("-m", str(proof_model("llama")), "-p", "8", "-n", "0", "-r", "1", "-t", "1")
    ran = output("llama-bench", *model, "--kv-transform", "none", "--kv-transform", str(good), "-o", "json")
    assert [row["kv_transform"] for row in json.loads(ran.stdout)] == ["none", str(good)], ran.stderr
    shown = output("llama-bench", *model, "--kv-transform", str(good))
    assert "kv_transform" in shown.stdout
    assert "kv_transform" not in output("llama-bench", *model).stdout
    refused = output("llama-bench", *model, "--kv-transform", "/nonexistent")
    assert refused.returncode == 1 and "--kv-transform /nonexistent may be the reason" in refused.stderr


@needs_patched
def test_perplexity_is_the_same_and_the_environment_may_name_the_file(
    good: Path, proof_model: Model, tmp_path: Path
) -> None:
    assert PATCHED is not None
    text = tmp_path / "text"
    text.write_text(PROMPT * 4)
    arguments = ("-m", str(proof_model("llama")), "-f", str(text), "-c", "128", "-t", "1", "-fa", "off")
    types = ("--cache-type-k", "f32", "--cache-type-v", "f32")
    runs = [
        output("llama-perplexity", *arguments, *types),
        output("llama-perplexity", *arguments, *types, "--kv-transform", str(good)),
    ]
    plain, changed = (re.search(r"Final estimate: PPL = ([0-9.]+)", ran.stderr + ran.stdout) for ran in runs)
    assert plain is not None and changed is not None
    assert float(plain[1]) == pytest.approx(float(changed[1]), rel=1e-3)
    argv = [str(PATCHED / "llama-perplexity"), *arguments]
    environment = clean_environment(LLAMA_ARG_KV_TRANSFORM="/nonexistent")
    refused = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=300)
    assert refused.returncode != 0 and "--kv-transform: /nonexistent" in refused.stderr + refused.stdout
