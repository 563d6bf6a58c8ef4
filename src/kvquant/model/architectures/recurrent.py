"""Architectures with recurrent layers, alone or beside attention.

Which layers are recurrent is load_arch_hparams in src/models/<arch>.cpp; which of them get cells and which a
state are the layer filters of llama_model::create_memory (src/llama-model.cpp); what the state holds is
llama_hparams::n_embd_r and ::n_embd_s (src/llama-hparams.cpp), all at the pin.
"""

from __future__ import annotations

from dataclasses import replace

from kvquant.model.hparams import Hparams, Keys, Rule
from kvquant.model.shape import RecurrentState, WindowKind


def _trunk(hparams: Hparams) -> tuple[bool, ...]:
    return tuple(il < hparams.n_layer for il in range(hparams.n_layer_all))


def _both(a: tuple[bool, ...], b: tuple[bool, ...]) -> tuple[bool, ...]:
    return tuple(x and y for x, y in zip(a, b, strict=True))


def _split(hparams: Hparams, recurrent: tuple[bool, ...], state: RecurrentState) -> Hparams:
    """Recurrent layers of the trunk get a state, all other layers cells: the default filters."""
    return replace(
        hparams,
        cached=tuple(not is_recurrent for is_recurrent in recurrent),
        stateful=_both(recurrent, _trunk(hparams)),
        state=state,
    )


def _without_kv_heads(hparams: Hparams) -> tuple[bool, ...]:
    """The layers of the trunk with no KV heads."""
    return _both(_trunk(hparams), tuple(n_head_kv == 0 for n_head_kv in hparams.n_head_kv))


def _ssm_state(keys: Keys, *, groups: bool = True) -> RecurrentState:
    """A state-space (Mamba, gated delta net) layer: convolution history and state, in float32."""
    conv, inner, state = keys.u32("ssm.conv_kernel"), keys.u32("ssm.inner_size"), keys.u32("ssm.state_size")
    n_group = keys.u32("ssm.group_count") if groups else 0
    return RecurrentState(max(conv - 1, 0) * (inner + 2 * n_group * state), state * inner)


def _taps(keys: Keys, otherwise: int) -> int:
    """Tokens a convolution looks back."""
    conv = keys.u32("ssm.conv_kernel")
    return conv - 1 if conv else otherwise


def mamba_hybrid(*, groups: bool) -> Rule:
    """Layers without KV heads are Mamba layers, the others attention layers."""
    return lambda keys, hparams: _split(hparams, _without_kv_heads(hparams), _ssm_state(keys, groups=groups))


def _recurrent_but_one_in(keys: Keys, hparams: Hparams, interval: int) -> tuple[bool, ...]:
    """One attention layer in ``interval``, unless the file gives another or lists the recurrent layers."""
    listed = "attention.recurrent_layers"
    if keys.has(listed):
        return tuple(bool(item) for item in keys.per_layer(listed, hparams.n_layer_all))
    interval = keys.u32("full_attention_interval", interval)
    if interval == 0:
        keys.fail("full_attention_interval is 0; it must be at least 1")
    return tuple(in_trunk and (il + 1) % interval != 0 for il, in_trunk in enumerate(_trunk(hparams)))


def gated_delta_net(keys: Keys, hparams: Hparams) -> Hparams:
    """Three of four layers, unless the file says otherwise; nextn layers have nothing."""
    split = _split(hparams, _recurrent_but_one_in(keys, hparams, 4), _ssm_state(keys))
    return replace(split, cached=_both(split.cached, _trunk(hparams)))


def minimax_01(keys: Keys, hparams: Hparams) -> Hparams:
    """Linear attention in seven of eight layers, unless the file says otherwise."""
    state = RecurrentState(0, hparams.head_dim_k**2 * hparams.n_head[0])
    split = _split(hparams, _recurrent_but_one_in(keys, hparams, 8), state)
    return replace(split, cached=_both(split.cached, _trunk(hparams)))


def kimi_delta(keys: Keys, hparams: Hparams) -> Hparams:
    """Layers without KV heads are Kimi delta attention (KDA), the others latent attention."""
    n_head, head_dim = hparams.n_head[0], keys.u32("kda.head_dim")
    # Both MLA head dims are required here.
    mla = all((keys.u32("attention.key_length_mla"), keys.u32("attention.value_length_mla")))
    n_conv = 3 * _taps(keys, otherwise=3) * n_head * head_dim
    state = RecurrentState(n_conv, head_dim**2 * n_head)
    return replace(_split(hparams, _without_kv_heads(hparams), state), mla=mla)


def plamo2(keys: Keys, hparams: Hparams) -> Hparams:
    """Mamba layers without KV heads; the head dims are read even where layer 0 has no heads."""
    split = _split(hparams, _without_kv_heads(hparams), _ssm_state(keys))
    head_dim_k = keys.u32("attention.key_length", hparams.head_dim_k)
    return replace(
        split, head_dim_k=head_dim_k, head_dim_v=keys.u32("attention.value_length", hparams.head_dim_v)
    )


def mamba(*, groups: bool) -> Rule:
    """Every layer keeps a state and nothing else."""
    return lambda keys, hparams: _all_recurrent(hparams, _ssm_state(keys, groups=groups))


def rwkv(keys: Keys, hparams: Hparams) -> Hparams:
    """Every layer keeps the last tokens and a matrix for each head."""
    n_shift, head_size = keys.u32("token_shift_count", 2), keys.u32("wkv.head_size")
    return _all_recurrent(hparams, RecurrentState(n_shift * hparams.n_embd, hparams.n_embd * head_size))


def _all_recurrent(hparams: Hparams, state: RecurrentState) -> Hparams:
    none = (False,) * hparams.n_layer_all
    return replace(hparams, cached=none, stateful=_trunk(hparams), state=state)


def lfm2(keys: Keys, hparams: Hparams) -> Hparams:
    """Layers without KV heads are short convolutions; with a window, every attention layer slides."""
    n_taps = keys.u32("shortconv.l_cache")
    state = RecurrentState(hparams.n_embd * max(n_taps - 1, 0), 0)
    split = _split(hparams, _without_kv_heads(hparams), state)
    window = keys.u32("attention.sliding_window", 0) if keys.arch == "lfm2" else 0
    if not window:
        return split
    windowed = _both(_trunk(hparams), split.cached)
    return replace(split, window=window, window_kind=WindowKind.SLIDING, windowed=windowed)


def falcon_h1(keys: Keys, hparams: Hparams) -> Hparams:
    """Every layer has both."""
    every = (True,) * hparams.n_layer_all
    return replace(hparams, cached=every, stateful=_trunk(hparams), state=_ssm_state(keys))


def nemotron_h(keys: Keys, hparams: Hparams) -> Hparams:
    """A layer is feed-forward, attention or Mamba, and only one of them."""
    mixes = tuple(n_ff == 0 for n_ff in hparams.n_ff)
    split = _split(hparams, _both(_without_kv_heads(hparams), mixes), _ssm_state(keys))
    return replace(split, cached=_both(split.cached, mixes))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("arwkv7", "rwkv6", "rwkv6qwen2", "rwkv7"), rwkv),
    **dict.fromkeys(("bailingmoe3", "kimi-k3", "kimi-linear"), kimi_delta),
    "falcon-h1": falcon_h1,
    "granitehybrid": mamba_hybrid(groups=True),
    "jamba": mamba_hybrid(groups=False),
    "lfm2": lfm2,
    "lfm2moe": lfm2,
    "mamba": mamba(groups=False),
    "mamba2": mamba(groups=True),
    "minimax-01": minimax_01,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "plamo2": plamo2,
    "qwen35": gated_delta_net,
    "qwen35moe": gated_delta_net,
    "qwen3next": gated_delta_net,
}
