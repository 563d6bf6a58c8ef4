"""Random exact changes of K for the proofs' models, and files of them that are wrong in one way."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFWriter

from kvquant.model.architectures import read_shape
from kvquant.model.gguf_file import open_model
from kvquant.model.shape import ModelShape
from kvquant.processes.background import clean_environment
from kvquant.transform import KVTransform, LayerTransform, write_transform
from kvquant.transform.for_model import model_id
from llama.proof import PATCHED

KINDS = ("centre", "diagonal", "centre and diagonal", "matrix", "centre and matrix")

POWERS = "powers of two"
"""A diagonal that rounds nothing, in no place, so that every bit of a result must stay."""


def with_float_weights(model: Path) -> Path:
    """The same model with float32 weights: float16 ones round activations to float16 before each product,
    which would be all that a comparison shows.
    """
    path = model.with_name(f"{model.stem}-f32.gguf")
    if not path.exists():
        argv = [f"{PATCHED}/llama-quantize", str(model), str(path), "F32"]
        subprocess.run(argv, check=True, capture_output=True, env=clean_environment())
    return path


def layers_with_keys(shape: ModelShape) -> tuple[int, ...]:
    """Those that keep a cache in which something lies; a pruned model has others."""
    return tuple(layer for layer in shape.kv_layers if shape.layers[layer].n_head_kv)


def random_transform(
    model: Path, kind: str, *, layers: Iterable[int] | None = None, seed: int = 0
) -> KVTransform:
    """A transform of the layers that keep a cache, or of some of them; nothing is fitted.

    Centres are as large as keys are, factors spread over an octave or two, matrices have condition numbers
    of ten or so.
    """
    shape = read_shape(model)
    rng = np.random.default_rng(seed)
    made = []
    for layer in layers_with_keys(shape) if layers is None else layers:
        axes = shape.layers[layer]
        size = (axes.n_head_kv, axes.head_dim_k)
        centre = rng.standard_normal(size) * ("centre" in kind)
        forward: npt.NDArray[Any] | None = None
        if kind == POWERS:
            forward = np.exp2(rng.integers(-3, 4, size))
        elif "diagonal" in kind:
            forward = np.exp(0.7 * rng.standard_normal(size))
        elif "matrix" in kind:
            noise = rng.standard_normal((*size, size[1])) * (0.4 / np.sqrt(size[1]))
            forward = np.exp(0.5 * rng.standard_normal(size))[:, None] * (np.eye(size[1]) + noise)
        made.append(LayerTransform(layer, half(centre), None if forward is None else half(forward)))
    return KVTransform(model_id(open_model(model)), tuple(made), {"text": "random"})


def half(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Float32 values that float16 holds exactly."""
    return values.astype(np.float16).astype(np.float32)


def write_random(path: Path, model: Path, kind: str, **options: Any) -> KVTransform:
    """Write a random transform and return it."""
    transform = random_transform(model, kind, **options)
    write_transform(transform, path)
    return transform


def change_file(
    path: Path,
    *,
    keys: Mapping[str, str | int | None] | None = None,
    tensors: Mapping[str, npt.NDArray[Any] | None] | None = None,
) -> None:
    """Write a file again with other keys and tensors, where `write_transform` would refuse; None leaves one
    out.
    """
    reader = GGUFReader(path)
    old_keys = {
        name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF")
    }
    all_tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors} | dict(tensors or {})
    all_keys = old_keys | dict(keys or {})
    writer = GGUFWriter(path, str(all_keys.pop("general.architecture")))
    for name, value in all_keys.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            (writer.add_uint64 if name.endswith("bytes") else writer.add_uint32)(name, int(value))
    for name, array in all_tensors.items():
        if array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def with_wrong_inverse(path: Path, factor: float = 1.008) -> None:
    """Make every second query factor of every layer wrong by less than a reader is sure to see."""
    changed = {}
    for tensor in GGUFReader(path).tensors:
        if tensor.name.endswith(".query"):
            values = np.array(tensor.data)
            values.reshape(-1)[::2] *= factor
            changed[tensor.name] = values
    change_file(path, tensors=changed)
