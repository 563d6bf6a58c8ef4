"""How the network starts, and how it gets more layers without changing what it computes.

Two choices make recall appear within a few hundred steps instead of many thousand:

- Forms of one word (` kobu`, `->kobu`) start with embeddings that share the word's part.
- In the first layer, the first query head of each KV head starts out looking at the token before: all embeddings
  share one direction, which its Q and K map to the fastest RoPE pairs, one position apart. To recall, later layers
  then only have to learn to match, not to find this head at the same time.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from kvquant.reference.model import ReferenceConfig, ReferenceModel, apply_rope, layer_shapes, rope_tables
from kvquant.reference.vocabulary import TOKENS

_EMBEDDING_STD = 0.3
_OUTPUT_PROJECTIONS = ("attn_output", "ffn_down")
_N_FAST_PAIRS = 4
_LOOK_BACK_GAIN = 2.0


def _random_layers(config: ReferenceConfig, n_layer: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return weights of ``n_layer`` new layers: ones for norms, fan-in scaled normal numbers for matrices."""
    return {
        name: torch.ones(n_layer, *shape)
        if len(shape) == 1
        else torch.randn(n_layer, *shape, generator=generator) / math.sqrt(shape[-1])
        for name, shape in layer_shapes(config).items()
    }


def _word_embeddings(config: ReferenceConfig, generator: torch.Generator) -> Tensor:
    """Return embeddings in which tokens of one word share 0.9 of their variance; one row per token."""
    own = torch.randn(config.n_vocab, config.n_embd, generator=generator)
    shared = {}
    for index, token in enumerate(TOKENS[: config.n_vocab]):
        if token.word is not None:
            base = shared.setdefault(token.word, torch.randn(config.n_embd, generator=generator))
            own[index] = math.sqrt(0.9) * base + math.sqrt(0.1) * own[index]
    return own * _EMBEDDING_STD


def new_model(config: ReferenceConfig, seed: int) -> ReferenceModel:
    """Return an untrained model of ``config``; the same ``seed`` gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    model = ReferenceModel(config)
    with torch.no_grad():
        model.token_embd.copy_(_word_embeddings(config, generator))
        for name, values in _random_layers(config, config.n_layer, generator).items():
            model.layers[name].copy_(values * (0.3 if name in _OUTPUT_PROJECTIONS else 1.0))
        _look_back(model, generator)
    return model


def _look_back(model: ReferenceModel, generator: torch.Generator) -> None:
    """Make the first layer's first query head of each KV head attend to the token before."""
    config = model.config
    common = torch.randn(config.n_embd, generator=generator)
    common /= common.norm()
    model.token_embd += common * _EMBEDDING_STD * math.sqrt(config.n_embd) / 2
    key = torch.zeros(config.head_dim)
    key[:_N_FAST_PAIRS] = 1.0
    cos, sin = rope_tables(config, 2)
    query = apply_rope(key.view(1, 1, -1), cos[1:], -sin[1:]).flatten()
    group = config.n_head // config.n_head_kv
    weight = {name: stack[0] for name, stack in model.layers.items()}
    for kv_head in range(config.n_head_kv):
        q_rows = slice(kv_head * group * config.head_dim, (kv_head * group + 1) * config.head_dim)
        k_rows = slice(kv_head * config.head_dim, (kv_head + 1) * config.head_dim)
        weight["attn_q"][q_rows].mul_(0.3).add_(torch.outer(query, common), alpha=2.0)
        weight["attn_k"][k_rows].mul_(0.3).add_(torch.outer(key, common), alpha=2.0)
    for name in ("attn_q_norm", "attn_k_norm"):
        weight[name].fill_(_LOOK_BACK_GAIN)
    weight["attn_output"].mul_(3.0)


def old_positions(n_old: int, n_new: int) -> list[int]:
    """Return where ``n_old`` layers go among ``n_new``: evenly spread, the first one first."""
    return [index * n_new // n_old for index in range(n_old)]


def grown(model: ReferenceModel, n_layer: int, seed: int) -> ReferenceModel:
    """Return ``model`` with ``n_layer`` layers that computes the same function.

    The old layers are spread evenly; each new one has random inputs and zero output projections, so it adds nothing
    until training moves it.
    """
    config = replace(model.config, n_layer=n_layer)
    generator = torch.Generator().manual_seed(seed)
    bigger = ReferenceModel(config)
    positions = old_positions(model.config.n_layer, n_layer)
    with torch.no_grad():
        bigger.token_embd.copy_(model.token_embd)
        bigger.output_norm.copy_(model.output_norm)
        for name, values in _random_layers(config, n_layer, generator).items():
            if name in _OUTPUT_PROJECTIONS:
                values.zero_()
            values[positions] = model.layers[name]
            bigger.layers[name].copy_(values)
    return bigger


def parameter_count(model: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())
