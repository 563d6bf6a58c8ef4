"""Architectures whose layers all keep a K/V cache: alike, with sliding windows, latent, looped or shared.

Each rule is src/models/<arch>.cpp:load_arch_hparams at the pin; the pattern key is read as
llama_model_base::load_swa_pattern (src/llama-model.cpp) reads it.
"""

from __future__ import annotations

from dataclasses import replace

from kvquant.model.hparams import Hparams, Keys, Rule
from kvquant.model.shape import MAX_LAYERS, WindowKind

_WINDOW = "attention.sliding_window"
_PATTERN = "attention.sliding_window_pattern"


def plain(_keys: Keys, hparams: Hparams) -> Hparams:
    """Return the common hparams as they are: every layer keeps a full cache.

    Among these are llama and mistral3, the architectures Mistral models are converted to, and phi3: their
    files may carry a sliding window, but llama.cpp does not read it or switches it off, so they cost a full
    cache.
    """
    return hparams


# -- sliding windows -----------------------------------------------------------------------------------------


def periodic(hparams: Hparams, period: int, *, full_first: bool = False) -> tuple[bool, ...]:
    """One layer of every ``period`` is full, the last or the first, the others slide (0: all slide)."""
    full = 0 if full_first else period - 1
    return tuple(
        il < hparams.n_layer and (period == 0 or il % period != full) for il in range(hparams.n_layer_all)
    )


def listed(keys: Keys, hparams: Hparams) -> tuple[bool, ...]:
    """The layers the pattern array marks; what it leaves out is full."""
    items = keys.array(_PATTERN)[: hparams.n_layer_all]
    return tuple(bool(item) for item in items) + (False,) * (hparams.n_layer_all - len(items))


def with_window(
    keys: Keys,
    hparams: Hparams,
    window: int,
    period: int,
    *,
    kind: WindowKind = WindowKind.SLIDING,
    full_first: bool = False,
) -> Hparams:
    """Slide over ``window`` tokens, in the layers the file names or else in all but one of ``period``."""
    if keys.has_array(_PATTERN):
        windowed = listed(keys, hparams)
    else:
        windowed = periodic(hparams, keys.u32(_PATTERN, period), full_first=full_first)
    return replace(hparams, window=window, window_kind=kind, windowed=windowed)


def required(period: int, *, full_first: bool = False) -> Rule:
    """A window the file must give."""
    return lambda keys, hparams: with_window(keys, hparams, keys.u32(_WINDOW), period, full_first=full_first)


def optional(period: int, *, full_first: bool = False, fixed: int | None = None) -> Rule:
    """A window the file may give; without it, or at 0, every layer is full. fixed: its size if given."""

    def rule(keys: Keys, hparams: Hparams) -> Hparams:
        window = keys.u32(_WINDOW, 0)
        if not window:
            return hparams
        return with_window(keys, hparams, fixed or window, period, full_first=full_first)

    return rule


def in_listed_layers(keys: Keys, hparams: Hparams) -> Hparams:
    """The file must give the window and list the layers."""
    return replace(
        hparams,
        window=keys.u32(_WINDOW),
        window_kind=WindowKind.SLIDING,
        windowed=listed(keys, hparams),
    )


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
        in_listed_layers(keys, hparams),
        head_dim_k_window=keys.u32("attention.key_length_swa"),
        head_dim_v_window=keys.u32("attention.value_length_swa"),
        n_layer_kv=hparams.n_layer_all - n_shared,
    )


def llama4(keys: Keys, hparams: Hparams) -> Hparams:
    """Chunks of 8192 tokens whatever window the file gives, unless it gives 0."""
    if keys.u32(_WINDOW, 1) == 0:
        return hparams
    return with_window(keys, hparams, 8192, 4, kind=WindowKind.CHUNKED)


def exaone4(keys: Keys, hparams: Hparams) -> Hparams:
    """Only the 64-layer model slides."""
    if hparams.n_layer != 64:
        return hparams
    return with_window(keys, hparams, keys.u32(_WINDOW, 4096), 4)


# -- latent attention, loops, routers ------------------------------------------------------------------------


def latent(keys: Keys, hparams: Hparams) -> Hparams:
    """MLA when the file gives both MLA head dims (llama_hparams::is_mla); older files store full K and V.

    One K row per token then holds the latent, of which V is a part.
    """
    lengths = (keys.u32("attention.key_length_mla", 0), keys.u32("attention.value_length_mla", 0))
    return replace(hparams, mla=all(lengths))


def deci(_keys: Keys, hparams: Hparams) -> Hparams:
    """Layers without KV heads have no attention; they count among the layers with a cache, of no bytes."""
    return replace(hparams, empty_layers=True)


def nanbeige(keys: Keys, hparams: Hparams) -> Hparams:
    """The trunk runs ``num_loops`` times, each time with layers of its own to the cache."""
    n_loops, n_layer = keys.u32("num_loops", 1), hparams.n_layer
    if n_loops < 1 or n_loops * n_layer > MAX_LAYERS:
        keys.fail(
            f"num_loops is {n_loops}; with {n_layer} layers llama.cpp takes 1 to {MAX_LAYERS // n_layer}"
        )
    return hparams if n_loops == 1 else hparams.with_layers([*range(n_layer)] * n_loops)


def granite_switch(_keys: Keys, hparams: Hparams) -> Hparams:
    """One more layer, of a single head, holds the router's K and V and is attended like the others."""
    n_layer = hparams.n_layer
    if n_layer == MAX_LAYERS:
        _keys.fail(f"{n_layer} layers leave no room for the router's; llama.cpp takes {MAX_LAYERS}")
    layered = hparams.with_layers([*range(n_layer), n_layer - 1])
    return replace(layered, n_head=(*layered.n_head[:-1], 1), n_head_kv=(*layered.n_head_kv[:-1], 1))


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom"),
            *("chameleon", "chatglm", "codeshell", "cogvlm", "command-r", "dbrx", "deepseek"),
            *("deepseek2-ocr", "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "falcon", "gemma", "glm4"),
            *("glm4moe", "gpt2", "gptneox", "granite", "granitemoe", "grok", "grovemoe", "hrm_text"),
            *("hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "hy_v3", "internlm2", "jais", "jais2", "llama"),
            *("llama-embed", "maincoder", "minicpm", "minicpm3", "minimax-m2", "mistral3", "mpt", "nemotron"),
            *("olmo", "olmoe", "openelm", "orion", "paddleocr", "pangu-embedded", "phi2", "phi3", "phimoe"),
            *("plamo", "plm", "pockettts", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe"),
            *("qwen3tts", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss", "smollm3", "stablelm", "starcoder"),
            *("starcoder2", "t5", "talkie", "xverse"),
        ),
        plain,
    ),
    "afmoe": optional(4),
    "cohere2": required(4),
    "cohere2moe": required(4, full_first=True),
    "exaone-moe": required(4),
    "exaone4": exaone4,
    "gemma2": gemma2,
    "gemma3": optional(6),
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "gpt-oss": required(2),
    "laguna": optional(4, full_first=True),
    "llama4": llama4,
    "mellum": optional(4),
    "muse-glimmer": required(4),
    "olmo2": optional(4),
    "plamo3": optional(8),
    "smallthinker": optional(4, full_first=True, fixed=4096),
    **dict.fromkeys(("granite_swa", "maple", "mimo2", "spark2_5", "step35"), in_listed_layers),
    **dict.fromkeys(("deepseek2", "mistral4"), latent),
    "deci": deci,
    "graniteswitch": granite_switch,
    "nanbeige": nanbeige,
}
