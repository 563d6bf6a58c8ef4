"""A capture of a real language model against Hugging Face's Torch model of the same GGUF file.

The model is fetched once. KVQUANT_LLAMA_BIN names the folder of a patched build; `make test` sets it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from assets.real_files import fetched
from command_line import run_kvquant
from kvquant.assets.find import model_path
from kvquant.model.capture import KVCapture, load_capture
from llama.proof import PATCHED, PROMPT, needs_patched

pytestmark = needs_patched

SIDES = ("k", "v", "q")
Sides = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def file() -> Path:
    return fetched(lambda: model_path("smollm2-135m"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("capture")
    yield path
    shutil.rmtree(path)  # the float32 model is large


@pytest.fixture(scope="module")
def capture(file: Path, folder: Path) -> KVCapture:
    return captured_from(file, folder)


@pytest.fixture(scope="module")
def float_capture(file: Path, folder: Path) -> KVCapture:
    """A capture of the same weights in float32, with which llama.cpp leaves activations as they are."""
    write_in_float32(file, folder / "f32.gguf")
    return captured_from(folder / "f32.gguf", folder)


def captured_from(model: Path, folder: Path) -> KVCapture:
    text, out = folder / "text", folder / f"{model.stem}.npz"
    text.write_text(PROMPT)
    options = ["--queries", "1000", "--threads", "1", "--llama-bin", str(PATCHED)]
    done = run_kvquant("capture", "--model", model, "--text", text, "-o", out, *options, timeout_seconds=600)
    assert done.returncode == 0, done.stderr
    return load_capture(out)


def write_in_float32(file: Path, path: Path) -> None:
    """Write the model with the matrices that meet activations decoded; embeddings are only looked up."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def torch_model(file: Path) -> Callable[[], list[Sides]]:
    """A pass of Torch's model in float32; gives K, V and Q of each layer, (n_tokens, heads, head_dim), with
    RoPE's pairs where ggml has them.
    """
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'kvquant-llama[torch]')")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.llama import modeling_llama

    torch.set_num_threads(1)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    plain = modeling_llama.apply_rotary_pos_emb

    def run() -> list[Sides]:
        found: list[Sides] = []

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

    return run


@pytest.fixture(scope="module")
def layers(torch_model: Callable[[], list[Sides]]) -> list[Sides]:
    return torch_model()


@pytest.fixture(scope="module")
def layers_8_bit(torch_model: Callable[[], list[Sides]]) -> list[Sides]:
    """The same with the input of every matrix in blocks of 32 of 8 bits, as ggml's q8_1 has them."""
    import torch

    plain = torch.nn.Linear.forward

    def rounded(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        blocks = x.reshape(*x.shape[:-1], -1, 32)
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        codes = torch.where(scale > 0, blocks / scale, 0).round()
        return plain(layer, (codes * scale.half().float()).reshape(x.shape))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", rounded)
        return torch_model()


def _interleaved(x: object) -> npt.NDArray[np.float32]:
    """(1, heads, n_tokens, head_dim) with a pair half a head apart, to (n_tokens, heads, head_dim) with the
    two beside each other.
    """
    values = np.asarray(x)[0].swapaxes(0, 1)
    halves = values.reshape(*values.shape[:-1], 2, values.shape[-1] // 2)
    return np.ascontiguousarray(halves.swapaxes(-1, -2)).reshape(values.shape)


FIRST, LATER = 1e-5, 3e-3
"""How far the first layer and the others may be off with float32 weights, as a share of the values' norm.
Measured: 5e-7, and at most 1.1e-3 in the last layer.
"""

SHARE = 1.5
"""How far a capture of the Q4_1 file may be off, in units of what 8-bit activations do to Torch's own pass.

They are the cause of what is off: llama.cpp multiplies Q4_1 weights by q8_1 activations, Torch by float32.
With float32 weights, and nothing else changed, the worst layer goes from 7.8 % to 0.11 %; and 8-bit
activations alone put Torch's own pass 8.2 % off. Two such passes do not meet: a code that flips is a new
error.
"""


def distances(found: Sequence[Mapping[str, Any]], truth: list[Sides]) -> list[dict[str, float]]:
    """How far K, V and Q of each layer are from the truth, as a share of its norm."""
    assert len(found) == len(truth)
    rows = []
    for one, right in zip(found, truth, strict=True):
        for side in SIDES:
            assert one[side].shape == right[side].shape
        rows.append({s: float(np.linalg.norm(one[s] - right[s]) / np.linalg.norm(right[s])) for s in SIDES})
    return rows


def sides_of(capture: KVCapture) -> list[dict[str, Any]]:
    return [{side: np.asarray(getattr(layer, side)) for side in SIDES} for layer in capture.layers]


def check_like_torch(capture: KVCapture, layers: list[Sides]) -> None:
    """K, V and Q of float32 weights are Torch's."""
    for index, row in enumerate(distances(sides_of(capture), layers)):
        assert max(row.values()) < (LATER if index else FIRST), (index, row)


def check_no_further_than_8_bits(capture: KVCapture, layers: list[Sides], layers_8_bit: list[Sides]) -> None:
    """K, V and Q of Q4_1 weights are Torch's but for what 8-bit activations do."""
    allowed = distances(layers_8_bit, layers)
    for index, row in enumerate(distances(sides_of(capture), layers)):
        for side in SIDES:
            assert row[side] < SHARE * allowed[index][side], (index, side, row[side], allowed[index][side])


def test_the_capture_is_torchs(float_capture: KVCapture, layers: list[Sides]) -> None:
    check_like_torch(float_capture, layers)


def test_a_capture_of_quantized_weights_is_off_by_8_bit_activations_alone(
    capture: KVCapture, layers: list[Sides], layers_8_bit: list[Sides]
) -> None:
    check_no_further_than_8_bits(capture, layers, layers_8_bit)
    # So much is due to them that the check of float32 weights sees it.
    with pytest.raises(AssertionError):
        check_like_torch(capture, layers)


@pytest.mark.parametrize("wrong", ["k and v", "one late", "halves"])
def test_the_comparison_can_fail(
    wrong: str,
    float_capture: KVCapture,
    capture: KVCapture,
    layers: list[Sides],
    layers_8_bit: list[Sides],
) -> None:
    changes = {
        "k and v": lambda sides: {**sides, "k": sides["v"], "v": sides["k"]},
        "one late": lambda sides: {side: np.roll(values, 1, axis=0) for side, values in sides.items()},
        "halves": lambda sides: {**sides, "q": np.roll(sides["q"], 32, axis=-1)},
    }
    change = changes[wrong]
    with pytest.raises(AssertionError):
        check_like_torch(float_capture, [change(sides) for sides in layers])
    with pytest.raises(AssertionError):
        check_no_further_than_8_bits(
            capture, [change(sides) for sides in layers], [change(sides) for sides in layers_8_bit]
        )
