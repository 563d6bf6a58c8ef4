"""Proof: llama-kv-moments sums what llama-kv-capture writes down, and its parts add up to the whole."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from gguf import GGUFReader

from command_line import run_kvquant
from kvquant.llama.moments import PROGRAM, MomentsRequest, measure_moments
from kvquant.model.architectures import read_shape
from kvquant.model.capture import LayerCapture, load_capture
from kvquant.processes.background import clean_environment
from kvquant.transform import HeadMoments
from llama.proof import MODELS, PATCHED, PROMPT
from write_random_gguf import RandomModel, write_random_gguf

Model = Callable[[str], Path]

needs_program = pytest.mark.skipif(
    PATCHED is None or not (PATCHED / PROGRAM).is_file(), reason=f"KVQUANT_LLAMA_BIN names no {PROGRAM}"
)
N_TOKENS = 200


def text_file(folder: Path) -> Path:
    path = folder / "text"
    path.write_text(PROMPT * 3)
    return path


@dataclass(frozen=True)
class Softmax:
    """What else than products a softmax is made of. sinks: float64 (n_head,), or None. max_bias: of ALiBi."""

    softcap: float
    sinks: np.ndarray | None
    max_bias: float


def softmax_of(model: Path, layer: int) -> Softmax:
    """Return what the model file says of a layer's softmax."""
    reader = GGUFReader(model)
    arch = reader.get_field("general.architecture").contents()
    cap, bias = (
        reader.get_field(f"{arch}.{name}") for name in ("attn_logit_softcapping", "attention.max_alibi_bias")
    )
    named = {tensor.name: tensor.data for tensor in reader.tensors}
    sinks = named.get(f"blk.{layer}.attn_sinks.weight")
    return Softmax(
        0.0 if cap is None else float(cap.contents()),
        None if sinks is None else sinks.astype(np.float64),
        0.0 if bias is None else float(bias.contents()),
    )


def expected(layer: LayerCapture, head: int, softmax: Softmax) -> tuple[np.ndarray, ...]:
    """Σw of keys and of queries, Σwk, Σwkkᵀ and Σwqqᵀ of one KV head, in float64, by the slope of the output.

    w = Σ p² |v - o|², times the squared slope of a capped logit, as keys and values stand in a float16 cache.
    """
    assert layer.q is not None
    k, v = (x[:, head].astype(np.float16).astype(np.float64) for x in (layer.k, layer.v))
    exact_k = layer.k[:, head].astype(np.float64)
    group, n = layer.axes.n_head // layer.k.shape[1], len(k)
    age = np.arange(n)[:, None] - np.arange(n)
    hidden = (age < 0) | (age >= (layer.axes.window or n))
    key_weights, query_weights, query_square = np.zeros(n), 0.0, np.zeros((k.shape[1], k.shape[1]))
    for index in range(head * group, (head + 1) * group):
        q = layer.q[:, index].astype(np.float64)
        logits, slope = layer.axes.logit_scale * q @ k.T, 1.0
        if softmax.softcap:
            slope = 1 - np.tanh(logits / softmax.softcap) ** 2
            logits = softmax.softcap * np.tanh(logits / softmax.softcap)
        if softmax.max_bias:  # of 2 to the power of some number of heads, as in the paper
            logits -= age * 2.0 ** (-softmax.max_bias * (index + 1) / layer.axes.n_head)
        logits[hidden] = -np.inf
        sink = np.full((n, 1), -np.inf if softmax.sinks is None else softmax.sinks[index])
        p = scipy.special.softmax(np.hstack([logits, sink]), axis=1)[:, :n]
        distance = ((v[None] - (p @ v)[:, None]) ** 2).sum(axis=2)
        weights = (p * slope) ** 2 * distance
        key_weights += weights.sum(axis=0)
        query_weights += weights.sum()
        query_square += (q * weights.sum(axis=1)[:, None]).T @ q
    weighed = exact_k * key_weights[:, None]
    return (
        key_weights.sum(),
        np.asarray(query_weights),
        weighed.sum(axis=0),
        weighed.T @ exact_k,
        query_square,
    )


def sums(head: HeadMoments) -> tuple[np.ndarray, ...]:
    weights = np.asarray(head.key_weight), np.asarray(head.query_weight)
    return *weights, head.key_sum, head.key_square, head.query_square


def check_sums(head: HeadMoments, wanted: tuple[np.ndarray, ...]) -> None:
    """Both within float16 rounding of the attention that they come from."""
    for one, other in zip(sums(head), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3 * np.abs(other).max())


SMALL_ONES = ("llama", "gemma3", "qwen35", "gemma2", "gpt-oss", "mpt")
"""Whole attention, windows, layers without any, capped logits, sinks, ALiBi."""


@needs_program
@pytest.mark.parametrize("arch", SMALL_ONES)
def test_the_sums_are_those_of_a_capture(arch: str, tmp_path: Path) -> None:
    assert PATCHED is not None
    small_one = MODELS.get(arch, RandomModel(arch=arch, n_layer=4, window=64, n_ff=128))
    model = write_random_gguf(tmp_path / "model.gguf", small_one)
    text, file = text_file(tmp_path), tmp_path / "kv.npz"
    options = ["--ctx", str(N_TOKENS), "--queries", str(N_TOKENS), "--llama-bin", PATCHED, "--threads", "1"]
    done = run_kvquant("capture", "--model", model, "--text", text, "-o", file, *options)
    assert done.returncode == 0, done.stderr
    capture = load_capture(file)
    moments = measure_moments(MomentsRequest(PATCHED, model, text, N_TOKENS, N_TOKENS, 1))
    assert moments.n_tokens == capture.n_tokens == N_TOKENS
    assert tuple(layer.layer for layer in moments.layers) == read_shape(model).kv_layers
    for found, layer in zip(moments.layers, capture.layers, strict=True):
        softmax = softmax_of(model, found.layer)
        for number, head in enumerate(found.heads):
            check_sums(head, expected(layer, number, softmax))
            if len(found.heads) > 1:
                with pytest.raises(AssertionError):
                    check_sums(head, expected(layer, (number + 1) % len(found.heads), softmax))


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
