"""Proof: an exact change of K (--kv-transform) changes what is stored and nothing that is computed.

Caches are float32, and flash attention, which rounds such keys to float16, is off. Factors that are powers of
two round nothing, so not a bit of a result may change; of other kinds float32 rounding remains. The proofs
compare log probabilities of the whole vocabulary, and the keys in the saved slot with what
`kvquant.transform`, which knows nothing of llama.cpp, makes of those without the change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.llama.state import SequenceState, load_state
from kvquant.model.architectures import read_shape
from kvquant.transform import KVTransform
from llama.proof import PATCHED, PROMPT, WITH_V, Outcome, generate, needs_patched, run, small
from llama.transforms import (
    KINDS,
    POWERS,
    layers_with_keys,
    with_float_weights,
    with_wrong_inverse,
    write_random,
)

Model = Callable[[str], Path]

ROUNDING = {"gemma2": 1e-3, "gemma3": 1e-3, "gemma4": 2e-2}
"""Nats by which log probabilities may differ, of architectures that amplify rounding: ggml looks GELU up in a
float16 table, and gemma4 does not scale its logits (`test_rounding_alone_is_seen`)."""

OF_OTHERS = 1e-5
"""The same of all others; they show 2e-6."""


@pytest.fixture
def float_model(proof_model: Model) -> Model:
    """Give the model file of an architecture, with float32 weights."""
    return lambda arch: with_float_weights(proof_model(arch))


def exact(model: Path, transform: Path | None = None, **changes: Any) -> ServerOptions:
    """Options under which a transform shows in nothing but rounding."""
    options = small(model, **{"k_type": "f32", "v_type": "f32", **changes})
    named = ("--kv-transform", str(transform)) if transform else ()
    return replace(options, extra=("--flash-attn", "off", *named, *options.extra))


def rounding(arch: str) -> float:
    return ROUNDING.get(arch, OF_OTHERS)


def log_probs(answer: dict[str, Any]) -> list[dict[int, float]]:
    """Of each generated token, the log probability of every token of the vocabulary by its number."""
    return [
        {entry["id"]: entry["logprob"] for entry in token["top_logprobs"]}
        for token in answer["completion_probabilities"]
    ]


def difference(left: dict[str, Any], right: dict[str, Any]) -> float:
    """Nats by which two answers differ at most; infinity when they are not of the same tokens."""
    if left["content"] != right["content"]:
        return float("inf")
    pairs = zip(log_probs(left), log_probs(right), strict=True)
    return max(abs(one[token] - two[token]) for one, two in pairs for token in one if token in two)


def keys(state: SequenceState, layer: int) -> np.ndarray:
    """K of one layer in the order of positions, float32 (n_tokens, width)."""
    for cache in state.caches:
        for stored in cache.layers:
            if stored.layer == layer:
                return stored.k.values()[np.argsort(cache.positions)]
    raise AssertionError(f"layer {layer} keeps no cache")


def error(values: np.ndarray, expected: np.ndarray) -> float:
    """Normalised squared error."""
    return float(np.square(values - expected).sum() / np.square(expected).sum())


def check_stored(model: Path, transform: KVTransform, plain: Outcome, changed: Outcome) -> None:
    """Every layer's stored keys are what the reference makes of the plain ones.

    Rounding of earlier layers shows in later ones, and more where architectures amplify it.
    """
    shape = read_shape(model)
    before, after = plain.state(shape), changed.state(shape)
    for layer in layers_with_keys(shape):
        of_layer = transform.of(layer)
        k = keys(before, layer)
        stored = next(entry for entry in after.layers if entry.layer == layer)
        assert (stored.k.transform is None) is (of_layer is None)
        if of_layer is not None:
            k = of_layer.apply_k(k.reshape(len(k), of_layer.n_head_kv, -1)).reshape(k.shape)
        assert error(keys(after, layer), k) < (1e-11 if layer == 0 else 1e-6)


@needs_patched
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", WITH_V)
def test_what_is_stored_changes_and_what_is_computed_does_not(
    arch: str, kind: str, float_model: Model, tmp_path: Path
) -> None:
    model = float_model(arch)
    transform = write_random(tmp_path / "transform.gguf", model, kind)
    plain = run(PATCHED, exact(model))
    changed = run(PATCHED, exact(model, tmp_path / "transform.gguf"))
    assert difference(plain.answer, changed.answer) < rounding(arch)
    check_stored(model, transform, plain, changed)


@needs_patched
@pytest.mark.parametrize("arch", WITH_V)
def test_powers_of_two_change_no_bit(arch: str, proof_model: Model, tmp_path: Path) -> None:
    model = proof_model(arch)
    shape = read_shape(model)
    write_random(tmp_path / "transform.gguf", model, POWERS)
    plain = run(PATCHED, exact(model))
    changed = run(PATCHED, exact(model, tmp_path / "transform.gguf"))
    assert changed.probabilities == plain.probabilities
    stored = zip(plain.state(shape).layers, changed.state(shape).layers, strict=True)
    for before, after in (pair for pair in stored if pair[0].layer in layers_with_keys(shape)):
        assert before.v is not None and after.v is not None
        np.testing.assert_array_equal(before.v.data, after.v.data)
        assert not np.array_equal(before.k.data, after.k.data)


@needs_patched
@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
def test_some_layers_alone(arch: str, float_model: Model, tmp_path: Path) -> None:
    model = float_model(arch)
    layers = read_shape(model).kv_layers[1::2]
    transform = write_random(tmp_path / "transform.gguf", model, "centre and matrix", layers=layers)
    plain = run(PATCHED, exact(model))
    changed = run(PATCHED, exact(model, tmp_path / "transform.gguf"))
    assert difference(plain.answer, changed.answer) < rounding(arch)
    check_stored(model, transform, plain, changed)


@needs_patched
def test_rounding_alone_is_seen(float_model: Model) -> None:
    model = float_model("gemma4")
    plain = run(PATCHED, exact(model))
    other = run(PATCHED, exact(model, extra=("--ubatch-size", "33")))
    assert OF_OTHERS < difference(plain.answer, other.answer) < rounding("gemma4")


@needs_patched
@pytest.mark.parametrize("kind", ["diagonal", "centre and matrix"])
@pytest.mark.parametrize("arch", WITH_V)
def test_a_wrong_inverse_is_seen(arch: str, kind: str, float_model: Model, tmp_path: Path) -> None:
    """Off by less than the server refuses: the proofs above could fail."""
    model = float_model(arch)
    path = tmp_path / "transform.gguf"
    write_random(path, model, kind)
    with_wrong_inverse(path)
    plain, changed = run(PATCHED, exact(model)), run(PATCHED, exact(model, path))
    assert difference(plain.answer, changed.answer) > 5 * rounding(arch)


# ---- shift, copy, slots, prompt cache ----

TEXT = PROMPT[:220]
N_COMPARED = 64
"""Tokens of the prompt that are still there after one shift of a full context of 256."""


def shifted(model: Path, transform: Path | None, policy: str | None) -> SequenceState:
    """The saved slot after more tokens than the context holds."""
    assert PATCHED is not None
    options = exact(model, transform, n_ctx=256, kv_layers=policy, extra=("--context-shift",))
    if policy is not None:  # quantized V needs it
        options = replace(options, extra=tuple("on" if word == "off" else word for word in options.extra))
    with LlamaServer(PATCHED, options) as server:
        generate(server, n_predict=60, prompt=TEXT)
        assert "slot context shift" in server.log_text()
        return load_state(server.save_slot(), read_shape(model))


@needs_patched
@pytest.mark.parametrize("kind", ["centre and diagonal", "centre and matrix"])
@pytest.mark.parametrize(("policy", "nmse"), [(None, 1e-10), ("*:k=f16", 1e-6), ("*:k=q8_0", 5e-3)])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_a_shift_turns_keys_and_not_what_is_stored(
    arch: str, policy: str | None, nmse: float, kind: str, proof_model: Model, tmp_path: Path
) -> None:
    """Layer 0 does not depend on other layers' rounding. Random transforms, undone, spread that of q8_0."""
    model = proof_model(arch)
    of_layer = write_random(tmp_path / "transform.gguf", model, kind).of(0)
    assert of_layer is not None
    plain = keys(shifted(model, None, None), 0)[:N_COMPARED]
    state = shifted(model, tmp_path / "transform.gguf", policy)
    stored = unrotated(state, 0)[:N_COMPARED]
    found = of_layer.undo_k(stored.reshape(len(stored), of_layer.n_head_kv, -1)).reshape(plain.shape)
    assert error(found, plain) < nmse
    assert error(stored, plain) > 0.1, "what is stored without its transform would not be seen"


def unrotated(state: SequenceState, layer: int) -> np.ndarray:
    """K of one layer by position, without the rotation of quantized rows."""
    from kvquant.formats.hadamard import unrotate

    rotation = state.caches[0].rotation_k
    values = keys(state, layer)
    return np.asarray(unrotate(values, rotation)) if rotation else values


@needs_patched
@pytest.mark.parametrize("unified", [("--kv-unified",), ("--no-kv-unified",)], ids=["unified", "streams"])
@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
def test_several_slots(arch: str, unified: tuple[str, ...], float_model: Model, tmp_path: Path) -> None:
    assert PATCHED is not None
    model = float_model(arch)
    path = tmp_path / "transform.gguf"
    write_random(path, model, "centre and diagonal")
    answers = []
    for transform in (None, path):
        with LlamaServer(PATCHED, exact(model, transform, n_ctx=1024, n_parallel=2, extra=unified)) as server:
            for slot, prompt in enumerate((PROMPT, PROMPT[::-1])):
                server.completion(prompt, 2, id_slot=slot, ignore_eos=True)
            answers.append([generate(server, prompt=text) for text in (PROMPT, PROMPT[::-1])])
    for plain, changed in zip(*answers, strict=True):
        assert difference(plain, changed) < rounding(arch)


@needs_patched
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_the_prompt_cache_gives_back_what_it_was_given(arch: str, float_model: Model, tmp_path: Path) -> None:
    assert PATCHED is not None
    model = float_model(arch)
    path = tmp_path / "transform.gguf"
    write_random(path, model, "centre and matrix")
    with LlamaServer(PATCHED, exact(model, path, extra=("--cache-ram", "64"))) as server:
        first = generate(server)
        generate(server, prompt=PROMPT[::-1])
        again = generate(server)
    assert again["timings"]["cache_n"] > 100, "the prompt was computed again"
    assert difference(first, again) < rounding(arch)
