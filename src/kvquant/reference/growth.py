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
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kvquant.errors import UsageError
from kvquant.reference.model import ReferenceConfig, ReferenceModel, apply_rope, layer_shapes, rope_tables
from kvquant.reference.vocabulary import TOKENS

_EMBEDDING_STD = 0.3
_OUTPUT_PROJECTIONS = ("attn_output", "ffn_down")
_N_FAST_PAIRS = 4
_FIRST_SLOW_PAIR = 16
_LOOK_BACK_GAIN = 2.0
_MATCH_GAIN = 2.0
_COPY_STRENGTH = 2.0
_NOISE_SHARE = 0.02
_ATTENTION_SHARED = 0.35


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


def grown(model: ReferenceModel, copies: Sequence[int], seed: int) -> ReferenceModel:
    """Return ``model`` with old layer i become ``copies[i]`` layers, computing nearly the same function.

    The feed-forward parts share the old one's output in random proportions. Of attention the first copy keeps
    a larger part, since the next ones no longer read quite what they were trained on. So every new layer has
    work from the start, and no two have the same. A little noise lets the copies learn different things.

    Raises UsageError when there is not one positive count for each old layer.
    """
    if len(copies) != model.config.n_layer or min(copies, default=0) < 1:
        raise UsageError(
            f"copies {list(copies)}: give one positive count for each of {model.config.n_layer} layers"
        )
    generator = torch.Generator().manual_seed(seed)
    bigger = ReferenceModel(replace(model.config, n_layer=sum(copies)))
    source = torch.arange(len(copies)).repeat_interleave(torch.tensor(copies))
    leads = source != torch.cat((torch.tensor([-1]), source[:-1]))
    fresh = _random_layers(bigger.config, sum(copies), generator)
    with torch.no_grad():
        bigger.token_embd.copy_(model.token_embd)
        bigger.output_norm.copy_(model.output_norm)
        for name, old in model.layers.items():
            values = old[source]
            if name in _OUTPUT_PROJECTIONS:
                share = _random_shares(source, generator)
                if name == "attn_output":
                    share = (1 - _ATTENTION_SHARED) * leads + _ATTENTION_SHARED * share
                values = values * share[:, None, None]
            elif values.ndim == 3:
                size = values.square().mean((1, 2), keepdim=True).sqrt() * math.sqrt(values.shape[-1])
                values = math.sqrt(1 - _NOISE_SHARE) * values + math.sqrt(_NOISE_SHARE) * size * fresh[name]
            bigger.layers[name].copy_(values)
    return bigger


def _random_shares(source: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random share per layer; the shares of the layers with one ``source`` sum to one."""
    drawn = 0.3 + 1.5 * torch.rand(len(source), generator=generator)
    totals = torch.zeros(int(source.max()) + 1).index_add_(0, source, drawn)
    return drawn / totals[source]


def parameter_count(model: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())
