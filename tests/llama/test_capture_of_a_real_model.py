"""A capture of a real language model against Hugging Face's Torch model of the same GGUF file.

Runs where the model has been fetched (kvquant models get smollm2-135m) and a patched build is named.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from kvquant.assets.fetch_model import is_fetched, model_place
from kvquant.assets.registry import models
from kvquant.model.capture import KVCapture, load_capture
from llama.proof import PATCHED, PROMPT, needs_patched

MODEL = models()["smollm2-135m"]
FILE = model_place(MODEL)

pytestmark = [
    needs_patched,
    pytest.mark.skipif(not is_fetched(MODEL), reason="not here; run: kvquant models get smollm2-135m"),
]

Sides = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> KVCapture:
    folder = tmp_path_factory.mktemp("capture")
    (folder / "text").write_text(PROMPT)
    argv = [sys.executable, "-m", "kvquant", "capture", "--model", str(FILE), "--text", str(folder / "text")]
    argv += ["-o", str(folder / "kv.npz"), "--queries", "1000", "--threads", "1", "--llama-bin", str(PATCHED)]
    subprocess.run(argv, check=True, capture_output=True)
    return load_capture(folder / "kv.npz")


@pytest.fixture(scope="module")
def layers() -> list[Sides]:
    """K, V and Q of each layer, (n_tokens, heads, head_dim), with RoPE's pairs where ggml has them."""
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'kvquant[torch]')")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.llama import modeling_llama

    torch.set_num_threads(1)
    where = {"pretrained_model_name_or_path": str(FILE.parent), "gguf_file": FILE.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    found: list[Sides] = []
    plain = modeling_llama.apply_rotary_pos_emb

    def keep(q: object, k: object, *rest: object, **more: object) -> tuple[object, object]:
        turned = plain(q, k, *rest, **more)
        found.append({"q": _interleaved(turned[0]), "k": _interleaved(turned[1])})
        return turned

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(modeling_llama, "apply_rotary_pos_emb", keep)
        cache = model(**tokenizer(PROMPT, return_tensors="pt"), use_cache=True).past_key_values
    for index, sides in enumerate(found):
        sides["v"] = cache.layers[index].values[0].transpose(0, 1).numpy()
    return found


def _interleaved(x: object) -> npt.NDArray[np.float32]:
    """(1, heads, n_tokens, head_dim) with a pair half a head apart, to (n_tokens, heads, head_dim) with the
    two beside each other.
    """
    values = np.asarray(x)[0].swapaxes(0, 1)
    halves = values.reshape(*values.shape[:-1], 2, values.shape[-1] // 2)
    return np.ascontiguousarray(halves.swapaxes(-1, -2)).reshape(values.shape)


FIRST, LATER = 0.02, 0.1
"""How far the first layer and the others may be off, as a share of the values' norm: llama.cpp multiplies
Q4_1 weights by 8-bit activations, Torch by float32 ones, and 30 layers add that up.
"""


def check_like_torch(capture: KVCapture, layers: list[Sides]) -> None:
    """K, V and Q are Torch's, but for what 8-bit activations do."""
    assert len(capture.layers) == len(layers)
    for layer, sides in zip(capture.layers, layers, strict=True):
        for side in ("k", "v", "q"):
            found, truth = np.asarray(getattr(layer, side)), sides[side]
            assert found.shape == truth.shape
            error = float(np.linalg.norm(found - truth) / np.linalg.norm(truth))
            assert error < (LATER if layer.axes.layer else FIRST), (layer.axes.layer, side, error)


def test_the_capture_is_torchs(capture: KVCapture, layers: list[Sides]) -> None:
    check_like_torch(capture, layers)


@pytest.mark.parametrize("wrong", ["k and v", "one late", "halves"])
def test_the_comparison_can_fail(wrong: str, capture: KVCapture, layers: list[Sides]) -> None:
    changes = {
        "k and v": lambda sides: {**sides, "k": sides["v"], "v": sides["k"]},
        "one late": lambda sides: {side: np.roll(values, 1, axis=0) for side, values in sides.items()},
        "halves": lambda sides: {**sides, "q": np.roll(sides["q"], 32, axis=-1)},
    }
    with pytest.raises(AssertionError):
        check_like_torch(capture, [changes[wrong](sides) for sides in layers])
