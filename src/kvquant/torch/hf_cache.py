"""A cache for Hugging Face transformers models that keeps K and V as a policy's formats would give them
back.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache

from kvquant.errors import ShapeError
from kvquant.model.shape import LayerShape, ModelShape, WindowKind
from kvquant.policy import Policy
from kvquant.torch.writing import QuantizedKV


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


def _write_through(cache_layer: Any, index: int, write: QuantizedKV) -> Any:
    """Make ``cache_layer`` keep what ``write`` returns for new K, V: (n_rows, n_head_kv, n_new, head_dim)."""
    keep = cache_layer.update

    def update(key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> Any:
        k, v = write(index, key_states, key_states, value_states)
        return keep(k, v, *args, **options)

    # Set on the object: a subclass of a cache layer would enrol itself as the one that every cache uses.
    cache_layer.update = update
    return cache_layer


class QuantizedCache(DynamicCache):
    """`past_key_values` for a transformers model, under a policy.

    Every new K (after RoPE) and V row is packed and unpacked once, when it is written, as llama.cpp does;
    attention then reads the unpacked values. Memory is that of an unquantized cache.
    """

    def __init__(self, config: PretrainedConfig, policy: Policy, *, rotate: bool = True) -> None:
        shape = shape_from_config(config)
        write = QuantizedKV(policy.resolve(shape), rotate=rotate)
        super().__init__(config=config)
        self.layers = [_write_through(layer, index, write) for index, layer in enumerate(self.layers)]
