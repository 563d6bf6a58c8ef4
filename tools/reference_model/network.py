"""The network: the `qwen3` architecture of GGUF files as a Torch module; callers may see and replace K and V.

Pre-norm layers of grouped-query attention (RMS norm over each head of Q and K, then RoPE with the halves of a
head as pairs) and a SiLU-gated feed-forward part; the output shares the token embedding. Weights of all
layers are stacked along a first axis `layer` and are otherwise laid out and named as in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from kvquant.model.shape import LayerShape, ModelShape

WriteKV: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(layer, q, k, v) to the (k, v) that attention reads, all after RoPE.

q: (n_rows, n_tokens, n_head, head_dim); k and v: (n_rows, n_tokens, n_head_kv, head_dim), float32.
"""


@dataclass(frozen=True)
class ReferenceConfig:
    """Sizes of the network; widths in values, `rope_base` and `norm_eps` as in the GGUF metadata."""

    n_vocab: int
    n_layer: int
    n_embd: int = 128
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_ff: int = 192
    n_ctx_train: int = 4096
    rope_base: float = 1e6
    norm_eps: float = 1e-6


def model_shape(config: ReferenceConfig) -> ModelShape:
    """Return what the KV cache of the network looks like."""
    layer = LayerShape(config.n_head, config.n_head_kv, config.head_dim, config.head_dim)
    return ModelShape("kvquant reference", "qwen3", config.n_ctx_train, (layer,) * config.n_layer)


def layer_shapes(config: ReferenceConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of one layer; `attn_q` is `blk.N.attn_q.weight` in the file."""
    n_embd, head_dim, n_ff = config.n_embd, config.head_dim, config.n_ff
    n_embd_q, n_embd_kv = config.n_head * head_dim, config.n_head_kv * head_dim
    return {
        "attn_norm": (n_embd,),
        "attn_q": (n_embd_q, n_embd),
        "attn_k": (n_embd_kv, n_embd),
        "attn_v": (n_embd_kv, n_embd),
        "attn_q_norm": (head_dim,),
        "attn_k_norm": (head_dim,),
        "attn_output": (n_embd, n_embd_q),
        "ffn_norm": (n_embd,),
        "ffn_gate": (n_ff, n_embd),
        "ffn_up": (n_ff, n_embd),
        "ffn_down": (n_embd, n_ff),
    }


def rope_tables(config: ReferenceConfig, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each float32 (n_tokens, head_dim / 2), of position times frequency."""
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = torch.arange(n_tokens, dtype=torch.float64)[:, None] * config.rope_base**-pairs
    return angles.cos().float(), angles.sin().float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn ``x`` (..., n_tokens, n_head, head_dim) by its positions; value i pairs with i + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class ReferenceModel(nn.Module):
    """The network with all its weights in float32."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Parameter(torch.zeros(config.n_vocab, config.n_embd))
        self.output_norm = nn.Parameter(torch.ones(config.n_embd))
        self.layers = nn.ParameterDict(
            {
                name: nn.Parameter((torch.ones if len(shape) == 1 else torch.zeros)(config.n_layer, *shape))
                for name, shape in layer_shapes(config).items()
            }
        )

    def hidden(
        self,
        tokens: Tensor,
        write_kv: WriteKV | None = None,
        skip: Collection[int] = (),
        layers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the normed output of the last layer, (n_rows, n_tokens, n_embd), for int64 ``tokens``.

        Layers in ``skip`` are left out, as if they added nothing. ``layers`` takes the place of the model's
        own stacks and may have any number of layers.
        """
        config = self.config
        n_rows, n_tokens = tokens.shape
        cos, sin = rope_tables(config, n_tokens)
        x = self.token_embd[tokens]
        stacks = {name: stack.unbind() for name, stack in (self.layers if layers is None else layers).items()}
        for layer in range(len(stacks["attn_norm"])):
            if layer in skip:
                continue
            weight = {name: stack[layer] for name, stack in stacks.items()}
            h = self._norm(x, weight["attn_norm"])
            q, k, v = (
                functional.linear(h, weight[name]).view(n_rows, n_tokens, -1, config.head_dim)
                for name in ("attn_q", "attn_k", "attn_v")
            )
            q = apply_rope(self._norm(q, weight["attn_q_norm"]), cos, sin)
            k = apply_rope(self._norm(k, weight["attn_k_norm"]), cos, sin)
            if write_kv is not None:
                k, v = write_kv(layer, q, k, v)
            attended = functional.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
            )
            x = x + functional.linear(attended.transpose(1, 2).flatten(2), weight["attn_output"])
            h = self._norm(x, weight["ffn_norm"])
            gated = functional.silu(functional.linear(h, weight["ffn_gate"])) * functional.linear(
                h, weight["ffn_up"]
            )
            x = x + functional.linear(gated, weight["ffn_down"])
        return self._norm(x, self.output_norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of every next token, (..., n_vocab), for ``hidden`` (..., n_embd)."""
        return functional.linear(hidden, self.token_embd)

    def forward(self, tokens: Tensor, write_kv: WriteKV | None = None) -> Tensor:
        """Return logits (n_rows, n_tokens, n_vocab) for ``tokens``, int64 (n_rows, n_tokens)."""
        return self.logits(self.hidden(tokens, write_kv))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.config.norm_eps)
