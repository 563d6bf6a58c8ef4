"""Architectures with sliding-window layers: which layers slide, over how many tokens.

Each rule is src/models/<arch>.cpp:load_arch_hparams at the pin; the pattern key is read as
llama_model_base::load_swa_pattern (src/llama-model.cpp) reads it.
"""

from __future__ import annotations

from dataclasses import replace

from kvquant.model.hparams import Hparams, Keys, Rule
from kvquant.model.shape import WindowKind

_WINDOW = "attention.sliding_window"
_PATTERN = "attention.sliding_window_pattern"


def periodic(hparams: Hparams, period: int) -> tuple[bool, ...]:
    """The last layer of every ``period`` is full, the others slide (set_swa_pattern; 0: all slide)."""
    return tuple(
        il < hparams.n_layer and (period == 0 or il % period < period - 1)
        for il in range(hparams.n_layer_all)
    )


def listed(keys: Keys, hparams: Hparams) -> tuple[bool, ...]:
    """The layers the pattern array marks; what it leaves out is full."""
    items = keys.array(_PATTERN)[: hparams.n_layer_all]
    return tuple(bool(item) for item in items) + (False,) * (hparams.n_layer_all - len(items))


def with_window(
    keys: Keys, hparams: Hparams, window: int, period: int, kind: WindowKind = WindowKind.SLIDING
) -> Hparams:
    """Slide over ``window`` tokens, in the layers the file names or else in all but one of ``period``."""
    if keys.has_array(_PATTERN):
        windowed = listed(keys, hparams)
    else:
        windowed = periodic(hparams, keys.u32(_PATTERN, period))
    return replace(hparams, window=window, window_kind=kind, windowed=windowed)


def required(period: int) -> Rule:
    """A window the file must give."""
    return lambda keys, hparams: with_window(keys, hparams, keys.u32(_WINDOW), period)


def optional(period: int) -> Rule:
    """A window the file may give; without it, or at 0, every layer is full."""

    def rule(keys: Keys, hparams: Hparams) -> Hparams:
        window = keys.u32(_WINDOW, 0)
        return with_window(keys, hparams, window, period) if window else hparams

    return rule


def gemma2(keys: Keys, hparams: Hparams) -> Hparams:
    """Every other layer, over 4096 tokens unless the file says otherwise."""
    return with_window(keys, hparams, keys.u32(_WINDOW, 4096), 2)


def gemma3n(keys: Keys, hparams: Hparams) -> Hparams:
    """Four of five layers slide; the layers from 20 on read the caches of layers 18 and 19."""
    return replace(with_window(keys, hparams, keys.u32(_WINDOW), 5), n_layer_kv=20)


def gemma4(keys: Keys, hparams: Hparams) -> Hparams:
    """The file lists the sliding layers, gives them their own head dim, and counts the sharing layers."""
    n_shared = keys.u32("attention.shared_kv_layers", 0)
    return replace(
        hparams,
        window=keys.u32(_WINDOW),
        window_kind=WindowKind.SLIDING,
        windowed=listed(keys, hparams),
        head_dim_k_window=keys.u32("attention.key_length_swa"),
        head_dim_v_window=keys.u32("attention.value_length_swa"),
        n_layer_kv=hparams.n_layer_all - n_shared,
    )


def llama4(keys: Keys, hparams: Hparams) -> Hparams:
    """Chunks of 8192 tokens whatever window the file gives, unless it gives 0."""
    if keys.u32(_WINDOW, 1) == 0:
        return hparams
    return with_window(keys, hparams, 8192, 4, WindowKind.CHUNKED)


def exaone4(keys: Keys, hparams: Hparams) -> Hparams:
    """Only the 64-layer model slides."""
    if hparams.n_layer != 64:
        return hparams
    return with_window(keys, hparams, keys.u32(_WINDOW, 4096), 4)


RULES: dict[str, Rule] = {
    "cohere2": required(4),
    "exaone4": exaone4,
    "gemma2": gemma2,
    "gemma3": optional(6),
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "gpt-oss": required(2),
    "llama4": llama4,
    "olmo2": optional(4),
}
