"""A shape from the config.json of a Hugging Face model, for the models whose layers are all alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvquant.documents import from_document
from kvquant.errors import ShapeError
from kvquant.model.shape import MAX_LAYERS, LayerShape, ModelShape

PLAIN = {
    "gemma": "gemma",
    "granite": "granite",
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "smollm3": "smollm3",
    "starcoder2": "starcoder2",
}
"""model_type to llama.cpp's architecture, where every layer keeps K and V of the same heads over the whole
context: conversion/ and src/models/ at the pin. llama.cpp knows no windows for any of these."""


@dataclass(frozen=True)
class _Config:
    """The keys of a config.json that say how large the cache is."""

    model_type: str
    num_hidden_layers: int
    num_attention_heads: int
    hidden_size: int = 0
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 0


def is_hf_config(document: object) -> bool:
    """A JSON document is a model's config.json, not a shape."""
    return isinstance(document, Mapping) and "layers" not in document and "model_type" in document


def shape_from_hf_config(document: Mapping[str, Any], where: str) -> ModelShape:
    """Return the shape that a config.json describes. Raises ShapeError where it is not one of `PLAIN`."""
    model_type = document["model_type"]
    if not isinstance(model_type, str) or model_type not in PLAIN:
        raise ShapeError(
            f"{where} is a Hugging Face configuration of model type {model_type!r}, whose layers are not all "
            "alike or not known; convert the model and give the GGUF file as --model, or write a shape "
            f"(kvquant shape --json); read are {', '.join(PLAIN)}"
        )
    config = from_document(_Config, document, where, error=ShapeError)
    n_layer, n_head = config.num_hidden_layers, config.num_attention_heads
    if not 0 < n_layer <= MAX_LAYERS or n_head < 1:
        raise ShapeError(
            f"{where} has {n_layer} layers of {n_head} heads; at least 1 and at most {MAX_LAYERS}"
        )
    head_dim = config.head_dim or config.hidden_size // n_head
    layer = LayerShape(n_head, config.num_key_value_heads or n_head, head_dim, head_dim)
    return ModelShape(
        name=where,
        arch=PLAIN[model_type],
        n_ctx_train=config.max_position_embeddings,
        layers=(layer,) * n_layer,
        source="Hugging Face configuration",
    )
