"""How the network starts, and how it gets more layers.

Left to itself a small model finds out how to recall late and by chance. Here the first two layers start out
with the circuit that does it (an induction head, Olsson et al. 2022, https://arxiv.org/abs/2209.11895), and
training refines it and builds on it:

- Forms of one word (` kobu`, `->kobu`) start with embeddings that share the word's part.
- Layer 0, first query head: looks at the token before. All embeddings share one direction, which Q and K map
  to the fastest RoPE pairs, one position apart. What it reads goes to a subspace of its own.
- Layer 1, first query head: looks for the token that followed this one before. Q reads the token itself, K
  reads the subspace; both use the slow RoPE pairs, which hardly turn over a context. What it reads is the
  next token.

All other weights start random, and none is kept fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kvquant.errors import UsageError
from kvquant.reference.vocabulary import TOKENS
from reference_model.network import ReferenceConfig, ReferenceModel, apply_rope, layer_shapes, rope_tables

_EMBEDDING_STD = 0.3
_OUTPUT_PROJECTIONS = ("attn_output", "ffn_down")
_N_FAST_PAIRS = 4
_FIRST_SLOW_PAIR = 16
_LOOK_BACK_GAIN = 2.0
_MATCH_GAIN = 2.0
_COPY_STRENGTH = 2.0
_REPLY_STRENGTH = 0.3
_SHARE_SPREAD = 0.7


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
    shared: dict[str, Tensor] = {}
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
            model.layers[name].copy_(values * (0.0 if name in _OUTPUT_PROJECTIONS else 1.0))
        _seed_induction(model, generator)
    return model


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return a random matrix (rows, columns), rows <= columns, with orthonormal rows."""
    q, _ = torch.linalg.qr(torch.randn(columns, rows, generator=generator))
    rows_first: Tensor = q.T
    return rows_first


def _seed_induction(model: ReferenceModel, generator: torch.Generator) -> None:
    """Write the two heads described above into the first two layers."""
    config = model.config
    head = slice(0, config.head_dim)
    previous, following = ({name: stack[layer] for name, stack in model.layers.items()} for layer in (0, 1))
    common = torch.randn(config.n_embd, generator=generator)
    common /= common.norm()
    model.token_embd.add_(common, alpha=_EMBEDDING_STD * math.sqrt(config.n_embd) / 2)

    key = torch.zeros(config.head_dim)
    key[:_N_FAST_PAIRS] = 1.0
    cos, sin = rope_tables(config, 2)
    query = apply_rope(key.view(1, 1, -1), cos[1:], -sin[1:]).flatten()
    previous["attn_q"][head] = torch.outer(query, common)
    previous["attn_k"][head] = torch.outer(key, common)
    previous["attn_q_norm"].fill_(_LOOK_BACK_GAIN)
    previous["attn_k_norm"].fill_(_LOOK_BACK_GAIN)

    # Both projections leave out the shared direction, which would make every two tokens look alike.
    apart = torch.eye(config.n_embd) - torch.outer(common, common)
    token, subspace = (_orthonormal(config.head_dim, config.n_embd, generator) @ apart for _ in range(2))
    previous["attn_v"][head] = token
    previous["attn_output"][:, head] = subspace.T

    half = config.head_dim // 2
    slow = [*range(_FIRST_SLOW_PAIR, half), *range(half + _FIRST_SLOW_PAIR, config.head_dim)]
    match = torch.zeros(config.head_dim, config.head_dim)
    match[slow] = _orthonormal(len(slow), config.head_dim, generator)
    following["attn_q"][head] = match @ token
    following["attn_k"][head] = match @ subspace
    following["attn_q_norm"].fill_(_MATCH_GAIN)
    following["attn_k_norm"].fill_(_MATCH_GAIN)
    copied = _orthonormal(config.head_dim, config.n_embd, generator) @ apart
    following["attn_v"][head] = copied
    following["attn_output"][:, head] = copied.T * _COPY_STRENGTH


@torch.no_grad()
def add_reply_head(model: ReferenceModel) -> None:
    """Start the second query head of layer 1 over as one that asks by the token before.

    In `{"kobu": 417}` and `kobu,417` the value follows a mark, and the key stands before the mark. K of the
    first head's group already tells which token came before each one. Q of the second head starts as the same
    map, so that at the mark it finds what followed the key earlier, at a share of the first head's strength.
    """
    head_dim = model.config.head_dim
    first, second = slice(head_dim), slice(head_dim, 2 * head_dim)
    layer = {name: stack[1] for name, stack in model.layers.items()}
    layer["attn_q"][second] = layer["attn_k"][first]
    layer["attn_output"][:, second] = _REPLY_STRENGTH * layer["attn_output"][:, first]


def spread(layers: Mapping[str, Tensor], order: Sequence[int], n_head: int, seed: int) -> dict[str, Tensor]:
    """Return stacks of len(order) layers, the i-th a copy of layer ``order[i]`` of ``layers``.

    The copies of one layer share its output: each query head of attention, and each feed-forward part, in
    random proportions of its own (log-normal), so every copy has work and no two have the same. Gradients
    reach ``layers``: trained in this form, a layer learns to do its work in so many steps, each of which sees
    what the ones before it added.

    Raises UsageError when ``order`` does not name every layer.
    """
    n_layer = len(layers["attn_norm"])
    if set(order) != set(range(n_layer)):
        raise UsageError(
            f"order {list(order)}: name each of the {n_layer} layers 0..{n_layer - 1} at least once"
        )
    generator = torch.Generator().manual_seed(seed)
    source = torch.tensor(order)
    stacks = {name: stack[source] for name, stack in layers.items()}
    by_head = _random_shares(source, n_head, generator)
    head_dim = stacks["attn_output"].shape[-1] // n_head
    stacks["attn_output"] = stacks["attn_output"] * by_head.repeat_interleave(head_dim, 1)[:, None, :]
    stacks["ffn_down"] = stacks["ffn_down"] * _random_shares(source, 1, generator)[:, :, None]
    return stacks


def grown(model: ReferenceModel, order: Sequence[int], seed: int) -> ReferenceModel:
    """Return a model whose layers are those `spread` makes of ``model``'s, from here on each on its own.

    Raises UsageError as `spread` does.
    """
    bigger = ReferenceModel(replace(model.config, n_layer=len(order)))
    with torch.no_grad():
        bigger.token_embd.copy_(model.token_embd)
        bigger.output_norm.copy_(model.output_norm)
        for name, values in spread(dict(model.layers), order, model.config.n_head, seed).items():
            bigger.layers[name].copy_(values)
    return bigger


def _random_shares(source: Tensor, n_parts: int, generator: torch.Generator) -> Tensor:
    """Return random shares, (n_layer, n_parts); those of the layers with one ``source`` sum to one."""
    drawn = torch.exp(_SHARE_SPREAD * torch.randn(len(source), n_parts, generator=generator))
    totals = torch.zeros(int(source.max()) + 1, n_parts).index_add_(0, source, drawn)
    return drawn / totals[source]


def parameter_count(model: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())
