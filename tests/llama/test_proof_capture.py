"""Proof: kvquant capture on a real server, for plain, sliding-window and hybrid models."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from command_line import run_kvquant
from kvquant.formats.hadamard import rotate
from kvquant.model.architectures import read_shape
from kvquant.model.capture import KVCapture, LayerCapture, load_capture
from kvquant.reference.tasks import Size, Split, held_out_documents
from llama.proof import PATCHED, PROMPT, needs_patched, run, small

Model = Callable[[str], Path]


def _kvquant_capture(model: Path, text: str, folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    (folder / "text").write_text(text, encoding="utf-8")
    files = ("--model", model, "--text", folder / "text", "-o", folder / "kv.npz")
    return run_kvquant("capture", *files, "--llama-bin", str(PATCHED), "--threads", "1", *extra)


@needs_patched
@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma3", "gemma4", "qwen35", "deci"])
def test_the_capture_is_the_saved_float_cache(arch: str, proof_model: Model, tmp_path: Path) -> None:
    """What a server saves of a float32 cache is what was captured; a window holds its last tokens only."""
    model = proof_model(arch)
    shape = read_shape(model)
    done = _kvquant_capture(model, PROMPT, tmp_path, "--queries", "9")
    assert done.returncode == 0 and done.stdout == "", done.stderr
    capture = load_capture(tmp_path / "kv.npz")
    state = run(PATCHED, small(model, k_type="f32", v_type="f32"), n_predict=0).state(shape)
    assert capture.n_tokens == len(state.tokens)
    assert capture.positions.tolist() == list(range(len(state.tokens)))
    assert (capture.arch, capture.n_layer, capture.queries) == (arch, shape.n_layer, "captured")
    assert capture.q_positions is not None and len(capture.q_positions) == 9
    assert capture.q_positions[-1] == capture.n_tokens - 1
    filled = tuple(shape.kv_layers[index] for index in shape.filled_kv_indices)
    assert tuple(layer.axes.layer for layer in capture.layers) == filled
    for cache in state.caches:
        order = np.argsort(cache.positions)
        kept = cache.positions[order]
        for stored in cache.layers:
            if stored.layer not in filled:
                assert not stored.k.values().size
                continue
            layer = next(entry for entry in capture.layers if entry.axes.layer == stored.layer)
            assert stored.v is not None and layer.q is not None
            np.testing.assert_array_equal(
                layer.k.reshape(capture.n_tokens, -1)[kept], stored.k.values()[order]
            )
            np.testing.assert_array_equal(
                layer.v.reshape(capture.n_tokens, -1)[kept], stored.v.values()[order]
            )
            sizes = shape.layers[stored.layer]
            assert (layer.axes.window, layer.axes.n_head) == (sizes.window, sizes.n_head)
            assert layer.q.shape == (9, sizes.n_head, sizes.head_dim_k) and float(np.ptp(layer.q)) > 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


REFERENCE = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"


def check_like_torch(capture: KVCapture, expected: KVCapture) -> None:
    """K, V and Q of a text are those of the Torch model; the program's attention reads K as float16."""
    assert expected.q_positions is not None and capture.q_positions is not None
    assert capture.q_positions.tolist() == expected.q_positions.tolist()
    for found, other in zip(capture.layers, expected.layers, strict=True):
        assert found.axes.logit_scale == pytest.approx(other.axes.logit_scale, rel=1e-6)
        for side in ("k", "v", "q"):
            values, truth = getattr(found, side), getattr(other, side)
            error = np.linalg.norm(values - truth) / np.linalg.norm(truth)
            assert error < 2e-3, (found.axes.layer, side, error)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[KVCapture, KVCapture]:
    """A capture of the reference model by the program and one by Torch, of the same tokens."""
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'kvquant-llama[torch]')")
    from reference_model.capture import capture as torch_capture
    from reference_model.gguf_file import load_gguf

    folder = tmp_path_factory.mktemp("reference")
    documents = held_out_documents(1, Split.TEST, 8, Size(n_tokens=200, most_pairs=16))
    text = next(document.text for document in documents if document.kind == "language")
    torch.set_num_threads(1)
    done = _kvquant_capture(REFERENCE, text, folder, "--queries", "20")
    assert done.returncode == 0, done.stderr
    found = load_capture(folder / "kv.npz")
    assert found.q_positions is not None
    return found, torch_capture(load_gguf(REFERENCE), text, found.q_positions.tolist())


@needs_patched
def test_the_capture_is_torchs(both: tuple[KVCapture, KVCapture]) -> None:
    check_like_torch(*both)


WRONG: dict[str, Callable[[LayerCapture], LayerCapture]] = {
    "K and V swapped": lambda layer: replace(layer, k=layer.v, v=layer.k),
    "heads in another order": lambda layer: replace(layer, q=np.asarray(layer.q)[:, ::-1]),
    "one position late": lambda layer: replace(layer, k=np.roll(layer.k, 1, axis=0)),
    "rotated": lambda layer: replace(layer, k=rotate(np.array(layer.k), layer.axes.head_dim_k)),
    "scaled": lambda layer: replace(layer, q=np.asarray(layer.q) * np.float32(layer.axes.logit_scale)),
}


@needs_patched
@pytest.mark.parametrize("wrong", WRONG)
def test_the_comparison_sees_a_wrong_capture(wrong: str, both: tuple[KVCapture, KVCapture]) -> None:
    found, expected = both
    broken = replace(found, layers=tuple(WRONG[wrong](layer) for layer in found.layers))
    with pytest.raises(AssertionError):
        check_like_torch(broken, expected)


@needs_patched
def test_the_first_tokens_in_float16(proof_model: Model, tmp_path: Path) -> None:
    model = proof_model("qwen3")
    assert _kvquant_capture(model, PROMPT, tmp_path).returncode == 0
    whole = load_capture(tmp_path / "kv.npz")
    done = _kvquant_capture(model, PROMPT, tmp_path, "--ctx", "40", "--half", "--queries", "100")
    assert "40 tokens, 4 layers, K and V in float16, Q of 40 positions" in done.stderr
    part = load_capture(tmp_path / "kv.npz")
    assert part.q_positions is not None and part.q_positions.tolist() == list(range(40))
    for layer, full in zip(part.layers, whole.layers, strict=True):
        assert layer.k.dtype == np.float16
        np.testing.assert_allclose(layer.k, full.k[:40], rtol=2e-3, atol=2e-3)


@needs_patched
@pytest.mark.parametrize(
    ("arch", "text", "extra", "message"),
    [
        ("llama", PROMPT, ("--ctx", "100000"), "-c 100000: the model was trained on"),
        ("deepseek2", PROMPT, (), "latent attention stores no V"),
        ("llama", "", (), "is empty"),
        ("llama", PROMPT, ("--llama-bin", "/nonexistent"), "there is no llama-kv-capture in /nonexistent"),
    ],
)
def test_what_cannot_be_captured_is_one_line(
    arch: str, text: str, extra: tuple[str, ...], message: str, proof_model: Model, tmp_path: Path
) -> None:
    done = _kvquant_capture(proof_model(arch), text, tmp_path, *extra)
    assert done.returncode == 1
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
