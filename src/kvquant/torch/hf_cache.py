"""A cache for Hugging Face transformers models that keeps K and V as a policy's formats would give them
back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

from kvquant.errors import ShapeError, TransformError
from kvquant.model.shape import LayerShape, ModelShape, WindowKind
from kvquant.policy import Policy
from kvquant.torch.writing import QuantizedKV
from kvquant.transform import KVTransform, LayerTransform, check_layers

PAIRS_TOGETHER = frozenset({"llama"})
PAIRS_APART = frozenset({"gemma", "gemma2", "gemma3", "qwen2", "qwen3"})
"""By `general.architecture`: where a head has the two channels that RoPE turns together."""


def shape_from_config(config: PretrainedConfig) -> ModelShape:
    """Return the cache's shape of a decoder with grouped-query attention in every layer, from its
    configuration.

    Raises ShapeError when a layer is not full or sliding-window attention, or sizes are missing.
    """
    text = config.get_text_config(decoder=True)
    n_layer, n_head = text.num_hidden_layers, text.num_attention_heads
    n_head_kv = getattr(text, "num_key_value_heads", None) or n_head
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // n_head
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * n_layer
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ShapeError(
            f"layers of kind {', '.join(unknown)}; only full and sliding-window attention are known"
        )
    windows = [text.sliding_window if kind == "sliding_attention" else 0 for kind in kinds]
    return ModelShape(
        name=text.model_type,
        arch=text.model_type,
        n_ctx_train=text.max_position_embeddings,
        layers=tuple(LayerShape(n_head, n_head_kv, head_dim, head_dim, window=window) for window in windows),
        window_kind=WindowKind.SLIDING if any(windows) else WindowKind.NONE,
        source="transformers configuration",
    )


def as_transformers_has_it(transform: KVTransform) -> KVTransform:
    """Return a transform fitted in llama.cpp with its channels where transformers has them.

    A GGUF of the llama architecture has the two channels that RoPE turns together side by side, transformers
    half a head apart; of those in PAIRS_APART both have them apart. Raises TransformError for another one.
    """
    arch = transform.model.arch
    if arch in PAIRS_APART:
        return transform
    if arch not in PAIRS_TOGETHER:
        raise TransformError(
            f"a transform of a {arch or 'nameless'} model: where transformers has its channels is known of "
            f"{', '.join(sorted(PAIRS_APART | PAIRS_TOGETHER))}"
        )

    def moved(layer: LayerTransform) -> LayerTransform:
        order = np.concatenate([np.arange(first, layer.head_dim, 2) for first in (0, 1)])
        forward = None if layer.forward is None else layer.forward[..., order]
        return LayerTransform(layer.layer, layer.centre[:, order], forward, layer.gain_db)

    return replace(transform, layers=tuple(moved(layer) for layer in transform.layers))


def _write_through(cache_layer: Any, index: int, write: QuantizedKV) -> Any:
    """Make ``cache_layer`` keep what ``write`` returns for new K, V: (n_rows, n_head_kv, n_new, head_dim)."""
    keep = cache_layer.update

    def update(key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> Any:
        # What writes takes the heads of a token together.
        k, v = (states.transpose(1, 2) for states in (key_states, value_states))
        k, v = write(index, k, k, v)
        return keep(k.transpose(1, 2), v.transpose(1, 2), *args, **options)

    # Set on the object: a subclass of a cache layer would enrol itself as the one that every cache uses.
    cache_layer.update = update
    return cache_layer


class QuantizedCache(DynamicCache):
    """`past_key_values` for a transformers model, under a policy.

    Every new K (after RoPE) and V row is packed and unpacked once, when it is written, as llama.cpp does;
    attention then reads the unpacked values. Memory is that of an unquantized cache.

    transform: of kvquant calibrate, fitted on a GGUF of this model. Raises TransformError when its layers do
    not fit.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        policy: Policy,
        *,
        rotate: bool = True,
        transform: KVTransform | None = None,
    ) -> None:
        shape = shape_from_config(config)
        if transform is not None:
            check_layers(transform, shape, "the transform")
            transform = as_transformers_has_it(transform)
        write = QuantizedKV(policy.resolve(shape), rotate=rotate, transform=transform)
        super().__init__(config=config)
        self.layers = [_write_through(layer, index, write) for index, layer in enumerate(self.layers)]
