"""From a GGUF header to a `ModelShape`, architecture by architecture, as the pinned llama.cpp reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvquant.errors import ShapeError
from kvquant.model.architectures import attention, recurrent
from kvquant.model.gguf_file import GgufModel, open_model
from kvquant.model.hparams import Hparams, Keys, Rule, common_hparams, printable
from kvquant.model.shape import LayerShape, ModelShape, WindowKind

RULES: dict[str, Rule] = {**attention.RULES, **recurrent.RULES}
"""Every architecture whose memory is known exactly. The others are refused, never guessed."""

_INDEXED = "it keeps indexer keys or compressed rows beside K and V, which no policy reaches"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("deepseek32", "deepseek4", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "minimax-m3"),
            "qwen4exp",
        ),
        _INDEXED,
    ),
    "gptj": "llama.cpp knows its name and cannot load it",
}
"""The architectures of the pin without rules that are language models, with the reason."""


class NoRulesError(ShapeError):
    """The architecture has no memory rules; llama.cpp may run the model all the same."""


def read_shape(path: str | Path) -> ModelShape:
    """Read a model's shape from the headers of its file or shards: milliseconds, whatever its size.

    Raises ModelFileError for a file that is missing, damaged, hostile or no language model, ShapeError for an
    architecture without rules (NoRulesError).
    """
    return shape_of(open_model(path))


def has_rules(model: GgufModel) -> bool:
    """Whether the memory of the model's architecture is known."""
    return Keys(model.header).arch in RULES


def shape_of(model: GgufModel) -> ModelShape:
    """Return the shape of a model.

    Raises ModelFileError where its header contradicts itself, NoRulesError for an architecture without
    rules.
    """
    header = model.header
    keys = Keys(header)
    if keys.arch not in RULES:
        reason = f" ({REFUSED[keys.arch]})" if keys.arch in REFUSED else ""
        raise NoRulesError(
            f"{header.shown}: no memory rules for architecture {printable(keys.arch)}{reason}; give its "
            "shape by hand with --shape FILE.json (docs/memory.md)"
        )
    try:
        hparams = RULES[keys.arch](keys, common_hparams(keys))
        if hparams.window_kind is not WindowKind.NONE:
            _check_window(keys, hparams)
        return _shape(model, keys, hparams)
    except ShapeError as error:
        keys.fail(str(error))


def shape_as_if_plain(model: GgufModel) -> ModelShape:
    """Return the shape a model has if every layer with KV heads keeps a full cache of its own.

    A guess, for a reader that then holds it against every byte of a saved slot.
    """
    keys = Keys(model.header)
    try:
        hparams = common_hparams(keys)
        cached = tuple(n > 0 and kept for n, kept in zip(hparams.n_head_kv, hparams.cached, strict=True))
        return _shape(model, keys, replace(hparams, cached=cached))
    except ShapeError as error:
        keys.fail(str(error))


def _shape(model: GgufModel, keys: Keys, hparams: Hparams) -> ModelShape:
    return ModelShape(
        name=model.name,
        arch=keys.arch,
        n_ctx_train=hparams.n_ctx_train,
        layers=tuple(_layer(keys, hparams, il) for il in range(hparams.n_layer_all)),
        window_kind=hparams.window_kind,
        state=hparams.state if any(hparams.stateful) else None,
        source=str(model.path),
    )


def _check_window(keys: Keys, hparams: Hparams) -> None:
    if hparams.window == 0:
        keys.fail("attention.sliding_window is 0, but this architecture has sliding-window layers")
    # llama_model::create_memory stops at GGML_ASSERT(hparams.is_swa_any()).
    if not any(hparams.windowed):
        keys.fail("attention.sliding_window_pattern leaves no sliding-window layer; llama.cpp refuses that")


def _layer(keys: Keys, hparams: Hparams, il: int) -> LayerShape:
    shares_with = _shares_with(keys, hparams, il)
    windowed = hparams.windowed[il]
    layer = LayerShape(
        n_head=hparams.n_head[il],
        n_head_kv=hparams.n_head_kv[il],
        head_dim_k=hparams.head_dim_k_window if windowed else hparams.head_dim_k,
        head_dim_v=hparams.head_dim_v_window if windowed else hparams.head_dim_v,
        keeps_cache=False,
        shares_with=shares_with,
        window=hparams.window if windowed else 0,
        stores_v=not hparams.mla,
        recurrent=hparams.stateful[il],
        nextn=il >= hparams.n_layer,
    )
    if not hparams.cached[il] or shares_with is not None:
        return layer
    if not layer.n_head_kv and not hparams.empty_layers:
        keys.fail(f"layer {il} has a cache but no KV heads; convert the model again")
    return replace(layer, keeps_cache=True)


def _shares_with(keys: Keys, hparams: Hparams, il: int) -> int | None:
    """The layer whose cache layer ``il`` reads: the reuse callback of llama_model::create_memory."""
    if hparams.n_layer_kv is None or il < hparams.n_layer_kv:
        return None
    if hparams.n_layer_kv < 2:
        keys.fail(f"attention.shared_kv_layers leaves {hparams.n_layer_kv} layers with a cache; 2 are needed")
    source = hparams.n_layer_kv - (2 if hparams.windowed[il] else 1)
    if hparams.windowed[source] is not hparams.windowed[il]:
        keys.fail(f"layer {il} shares with layer {source}, but only one of them has a sliding window")
    return source
