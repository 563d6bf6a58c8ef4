"""A transform beside the model it is used with: whether it belongs there, and how deep it may be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvquant.errors import TransformError
from kvquant.model.gguf_file import GgufModel
from kvquant.model.shape import ModelShape
from kvquant.results.transform import TransformUsed
from kvquant.transform.sidecar import read_transform
from kvquant.transform.transform import KVTransform, ModelId

_KEY_LENGTH = 16
"""Hexadecimal digits of a digest that tell transforms apart in records."""


@dataclass(frozen=True)
class TransformFile:
    """A sidecar that llama.cpp is given, and what a record says of it."""

    path: Path
    used: TransformUsed

    @property
    def digest(self) -> str:
        """Of what changes numbers; tells a measurement with this transform from others."""
        return self.used.digest

    def depth_warning(self, n_ctx: int) -> str | None:
        """What a user has to know before using it at ``n_ctx`` tokens; None for nothing."""
        deepest = self.used.n_ctx
        if deepest is None:
            return (
                f"{self.path} does not say how deep it was calibrated; compare with and without it at {n_ctx}"
            )
        if n_ctx <= deepest:
            return None
        return (
            f"{self.path} was calibrated to {deepest} tokens and is used at {n_ctx}: deeper it can do harm; "
            f"calibrate with --ctx {n_ctx}"
        )


def transform_file(path: Path, transform: KVTransform) -> TransformFile:
    """Return the handle of a sidecar that holds ``transform``."""
    layers, n_bytes = len(transform.layers), path.stat().st_size
    return TransformFile(path, TransformUsed(path.name, transform.digest, n_bytes, transform.n_ctx, layers))


def cache_key(policy: str, transform: TransformFile | None) -> str:
    """Return what names a cache in records: the policy's canonical text, and which transform, if any."""
    return policy if transform is None else f"{policy}@{transform.digest[:_KEY_LENGTH]}"


def model_id(model: GgufModel) -> ModelId:
    """Return what a sidecar says of its model. Reads the whole file, for its digest."""
    return ModelId(model.sha256(), model.arch, model.n_layer, weight_bytes(model))


def weight_bytes(model: GgufModel) -> int:
    """Return the bytes of all tensors, as llama_model_size counts them."""
    return sum(tensor.n_bytes or 0 for shard in model.shards for tensor in shard.tensors)


def open_transform(
    path: Path, model: GgufModel, shape: ModelShape | None = None, *, digest: bool = False
) -> TransformFile:
    """Read a sidecar and hold it against the model it is to be used with.

    digest: compare the digest of the whole model file too, which takes reading it; else what a running
    llama.cpp can see. Raises TransformError, one line, for a file that is damaged, of another model, or for
    other layers than these.
    """
    transform = read_transform(path)
    made_for, here = transform.model, (model.arch, model.n_layer, weight_bytes(model))
    if (made_for.arch, made_for.n_layer, made_for.weight_bytes) != here:
        raise TransformError(
            f"{path} was made for another model, {_words(made_for)}; {model.shown} is "
            f"{_words(ModelId('', *here))}: run kvquant calibrate on it"
        )
    if digest and made_for.sha256 != model.sha256():
        raise TransformError(
            f"{path} was made for another file of this kind of model, SHA-256 {made_for.sha256[:12]}; run "
            f"kvquant calibrate on {model.shown}"
        )
    if shape is not None:
        check_layers(transform, shape, str(path))
    return transform_file(path, transform)


def check_layers(transform: KVTransform, shape: ModelShape, where: str) -> None:
    """Raise TransformError when a layer of the transform keeps no cache here, or has other heads."""
    for layer in transform.layers:
        known = layer.layer in shape.kv_layers
        here = shape.layers[layer.layer] if known else None
        if here is None or (here.n_head_kv, here.head_dim_k) != (layer.n_head_kv, layer.head_dim):
            has = "keeps no keys" if here is None else f"has {here.n_head_kv} KV heads of {here.head_dim_k}"
            raise TransformError(
                f"{where}: layer {layer.layer} is for {layer.n_head_kv} KV heads of {layer.head_dim} values, "
                f"{shape.name}'s {has}"
            )


def loaded_bytes(transform: KVTransform, shape: ModelShape) -> int:
    """Return what llama.cpp keeps of a transform beside the cache, in bytes: centre, M, M⁻ᵀ, M⁻¹ as float32.

    M⁻ᵀ of a diagonal is there once for every query head (llama_kv_transform of patch 0005).
    """
    n_values = 0
    for layer in transform.layers:
        n_values += layer.centre.size
        if layer.kind == "diagonal":
            n_values += 2 * layer.centre.size + layer.head_dim * shape.layers[layer.layer].n_head
        elif layer.forward is not None:
            n_values += 3 * layer.forward.size
    return 4 * n_values


def _words(model: ModelId) -> str:
    return f"{model.arch or 'unknown'} of {model.n_layer} layers and {model.weight_bytes} bytes of weights"
