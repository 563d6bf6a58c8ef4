"""Proof: kvquant capture on a real server, for plain, sliding-window and hybrid models."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvquant.model.architectures import read_shape
from kvquant.model.capture import load_capture
from llama.proof import PATCHED, PROMPT, needs_patched, run, small

Model = Callable[[str], Path]


def _kvquant_capture(model: Path, text: str, folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    (folder / "text").write_text(text, encoding="utf-8")
    return subprocess.run(
        [
            *(sys.executable, "-m", "kvquant", "capture", "--model", str(model)),
            *("--text", str(folder / "text"), "-o", str(folder / "kv.npz")),
            *("--llama-bin", str(PATCHED), "--threads", "1", *extra),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


@needs_patched
@pytest.mark.parametrize("arch", ["llama", "gemma3", "gemma4", "qwen35"])
def test_the_capture_is_the_saved_float_cache(arch: str, proof_model: Model, tmp_path: Path) -> None:
    model = proof_model(arch)
    shape = read_shape(model)
    done = _kvquant_capture(model, PROMPT, tmp_path)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    capture = load_capture(tmp_path / "kv.npz")
    state = run(PATCHED, small(model, k_type="f32", v_type="f32"), n_predict=0).state(shape)
    assert capture.n_tokens == len(state.tokens)
    assert capture.positions.tolist() == list(range(len(state.tokens)))
    assert (capture.arch, capture.n_layer, capture.queries) == (arch, shape.n_layer, "none")
    assert tuple(layer.axes.layer for layer in capture.layers) == shape.kv_layers
    for cache in state.caches:
        order = np.argsort(cache.positions)
        for stored in cache.layers:
            layer = next(entry for entry in capture.layers if entry.axes.layer == stored.layer)
            assert stored.v is not None
            np.testing.assert_array_equal(layer.k.reshape(len(order), -1), stored.k.values()[order])
            np.testing.assert_array_equal(layer.v.reshape(len(order), -1), stored.v.values()[order])
            np.testing.assert_array_equal(capture.positions_of(layer), cache.positions[order])
            assert layer.axes.window == shape.layers[stored.layer].window


@needs_patched
@pytest.mark.parametrize(
    ("arch", "text", "extra", "message"),
    [
        ("llama", PROMPT * 4, ("--ctx", "256"), "exceeds the available context size"),
        ("deepseek2", PROMPT, (), "latent attention stores no V"),
        ("llama", "", (), "is empty"),
    ],
)
def test_what_cannot_be_captured_is_one_line(
    arch: str, text: str, extra: tuple[str, ...], message: str, proof_model: Model, tmp_path: Path
) -> None:
    done = _kvquant_capture(proof_model(arch), text, tmp_path, *extra)
    assert done.returncode == 1
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "kv.npz").exists()
