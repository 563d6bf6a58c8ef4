"""Architectures that mix attention with recurrent layers.

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


def mamba_hybrid(*, groups: bool) -> Rule:
    """Layers without KV heads are Mamba layers, the others attention layers."""
    return lambda keys, hparams: _split(hparams, _without_kv_heads(hparams), _ssm_state(keys, groups=groups))


def gated_delta_net(keys: Keys, hparams: Hparams) -> Hparams:
    """One attention layer in every four, unless the file gives an interval or lists the recurrent layers."""
    listed = "attention.recurrent_layers"
    if keys.has(listed):
        recurrent = tuple(bool(item) for item in keys.per_layer(listed, hparams.n_layer_all))
    else:
        interval = keys.u32("full_attention_interval", 4)
        if interval == 0:
            keys.fail("full_attention_interval is 0; it must be at least 1")
        recurrent = tuple(
            in_trunk and (il + 1) % interval != 0 for il, in_trunk in enumerate(_trunk(hparams))
        )
    split = _split(hparams, recurrent, _ssm_state(keys))
    return replace(split, cached=_both(split.cached, _trunk(hparams)))


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
    "falcon-h1": falcon_h1,
    "granitehybrid": mamba_hybrid(groups=True),
    "jamba": mamba_hybrid(groups=False),
    "lfm2": lfm2,
    "lfm2moe": lfm2,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "qwen35": gated_delta_net,
    "qwen35moe": gated_delta_net,
    "qwen3next": gated_delta_net,
}
