"""Proof: llama-kv-moments sums what llama-kv-capture writes down, and its parts add up to the whole."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from command_line import run_kvquant
from kvquant.llama.moments import PROGRAM, MomentsRequest, measure_moments
from kvquant.model.architectures import read_shape
from kvquant.model.capture import LayerCapture, load_capture
from kvquant.processes.background import clean_environment
from kvquant.transform import HeadMoments
from llama.proof import PATCHED, PROMPT

Model = Callable[[str], Path]

needs_program = pytest.mark.skipif(
    PATCHED is None or not (PATCHED / PROGRAM).is_file(), reason=f"KVQUANT_LLAMA_BIN names no {PROGRAM}"
)
N_TOKENS = 200


def text_file(folder: Path) -> Path:
    path = folder / "text"
    path.write_text(PROMPT * 3)
    return path


def expected(layer: LayerCapture, head: int) -> tuple[np.ndarray, ...]:
    """Σk, Σkkᵀ and Σqqᵀ of one KV head, in float64."""
    assert layer.q is not None
    k = layer.k[:, head].astype(np.float64)
    group = layer.axes.n_head // layer.k.shape[1]
    q = layer.q[:, head * group : (head + 1) * group].astype(np.float64).reshape(-1, k.shape[1])
    return k.sum(axis=0), k.T @ k, q.T @ q


def sums(head: HeadMoments) -> tuple[np.ndarray, ...]:
    return head.key_sum, head.key_square, head.query_square


@needs_program
@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
def test_the_sums_are_those_of_a_capture(arch: str, proof_model: Model, tmp_path: Path) -> None:
    assert PATCHED is not None
    model, text, file = proof_model(arch), text_file(tmp_path), tmp_path / "kv.npz"
    options = ["--ctx", str(N_TOKENS), "--queries", str(N_TOKENS), "--llama-bin", PATCHED, "--threads", "1"]
    done = run_kvquant("capture", "--model", model, "--text", text, "-o", file, *options)
    assert done.returncode == 0, done.stderr
    capture = load_capture(file)
    moments = measure_moments(MomentsRequest(PATCHED, model, text, N_TOKENS, N_TOKENS, 1))
    assert moments.n_tokens == capture.n_tokens == N_TOKENS
    assert tuple(layer.layer for layer in moments.layers) == read_shape(model).kv_layers
    for found, layer in zip(moments.layers, capture.layers, strict=True):
        for number, head in enumerate(found.heads):
            assert (head.n_key, head.n_query) == (N_TOKENS, N_TOKENS * layer.axes.n_head // len(found.heads))
            for one, other in zip(sums(head), expected(layer, number), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6 * np.abs(other).max())
            wrong = expected(layer, (number + 1) % len(found.heads))
            assert not np.allclose(head.key_square, wrong[1], rtol=1e-2), "heads could be mixed up"


@needs_program
def test_parts_of_a_text_add_up(proof_model: Model, tmp_path: Path) -> None:
    assert PATCHED is not None
    model, text = proof_model("llama"), text_file(tmp_path)

    def part(n_skipped: int, n_tokens: int) -> np.ndarray:
        output = tmp_path / f"{n_skipped}-{n_tokens}"
        request = MomentsRequest(PATCHED, model, text, 64, n_tokens, 1)
        argv = [str(PATCHED / PROGRAM), *request.arguments(output), "--skip-tokens", str(n_skipped)]
        subprocess.run(argv, check=True, capture_output=True, env=clean_environment())
        return np.fromfile(output)

    whole, first = part(0, 192), part(0, 128)
    np.testing.assert_allclose(first + part(128, 64), whole, rtol=1e-12, atol=1e-9)
    assert not np.allclose(first + part(64, 64), whole, rtol=1e-3)


@needs_program
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no --"),
        (("--nope",), "unknown argument '--nope'"),
        (("--skip-tokens", "-1"), "--skip-tokens"),
        (("-m", "MODEL", "-f", "TEXT", "-o", "OUT", "--skip-tokens", "100000"), "nothing to sum"),
        (("-m", "MODEL", "-f", "TEXT", "-o", "TEXT", "--n-tokens", "8"), "cannot write"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: tuple[str, ...], words: str, proof_model: Model, tmp_path: Path
) -> None:
    assert PATCHED is not None
    names = {"MODEL": proof_model("llama"), "TEXT": text_file(tmp_path), "OUT": tmp_path / "out"}
    argv = [str(PATCHED / PROGRAM), *(str(names.get(word, word)) for word in arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, env=clean_environment())
    assert done.returncode in {1, 2} and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
