"""The JSON form of a model shape: what `--shape FILE.json` takes, documented in docs/memory.md."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NoReturn

from kvquant.errors import ShapeError
from kvquant.model.hf_config import is_hf_config, shape_from_hf_config
from kvquant.model.shape import MAX_LAYERS, LayerShape, ModelShape, RecurrentState, WindowKind, runs

_TOP = {"name", "arch", "n_ctx_train", "layers", "window_kind", "state", "source"}
_LAYER = {field.name for field in fields(LayerShape)}
_BOOLS = {"keeps_cache", "stores_v", "recurrent", "nextn"}


def shape_from_json(text: str, name: str = "shape") -> ModelShape:
    """Read a shape, or the config.json of a Hugging Face model. Raises ShapeError naming the key at fault.

    name: what the shape is called when the text gives no name.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"{name} is not JSON: {error}") from None
    if is_hf_config(data):
        return shape_from_hf_config(data, name)
    top = _object(data, "the shape", _TOP)
    layers = _layers(top.get("layers"))
    windows = any(layer.window for layer in layers)
    kind = top.get("window_kind", (WindowKind.SLIDING if windows else WindowKind.NONE).value)
    kinds = [member.value for member in WindowKind]
    if kind not in kinds:
        raise ShapeError(f"shape: window_kind is {reprlib.repr(kind)}; known: {', '.join(kinds)}")
    return ModelShape(
        name=_text(top, "name", name),
        arch=_text(top, "arch", "unknown"),
        n_ctx_train=_integer(top.get("n_ctx_train", 0), "n_ctx_train"),
        layers=layers,
        window_kind=WindowKind(kind),
        state=_state(top.get("state")),
        source=_text(top, "source", ""),
    )


def shape_to_json(shape: ModelShape) -> str:
    """Return the shape as JSON, one line per run of equal layers, fields at their default left out."""
    defaults = {field.name: field.default for field in fields(LayerShape)}
    layers = []
    for count, layer in runs(shape.layers):
        entry = {key: value for key, value in asdict(layer).items() if value != defaults[key]}
        # A reader would otherwise have to know which layers lose their cache by default.
        layers.append({"repeat": count, **entry, "keeps_cache": layer.keeps_cache})
    document = {
        "name": shape.name,
        "arch": shape.arch,
        "n_ctx_train": shape.n_ctx_train,
        "window_kind": shape.window_kind.value,
        "state": asdict(shape.state) if shape.state else None,
        "source": shape.source,
    }
    # A path need not be UTF-8; what is left of such bytes goes in and out as \u escapes.
    plain = shape.source.encode("utf-8", "replace").decode() == shape.source
    head = json.dumps(document, ensure_ascii=not plain, indent=2).removesuffix("\n}")
    lines = ",\n    ".join(json.dumps(entry) for entry in layers)
    return f'{head},\n  "layers": [\n    {lines}\n  ]\n}}\n'


def _layers(entries: object, where: str = "layers", groups: bool = True) -> tuple[LayerShape, ...]:
    """Read a list of layers and, at the outer level, of groups {"repeat": n, "layers": [...]}."""
    if not isinstance(entries, list) or not entries:
        raise ShapeError(f'shape: {where} must be a list of layers, such as [{{"repeat": 32, ...}}]')
    layers: tuple[LayerShape, ...] = ()
    for index, entry in enumerate(entries):
        at = f"{where}[{index}]"
        if groups and isinstance(entry, dict) and "layers" in entry:
            parts = _layers(_object(entry, at, {"repeat", "layers"})["layers"], f"{at}.layers", groups=False)
        else:
            parts = (_layer(entry, at),)
        repeat = _repeat(entry, at)
        if len(layers) + repeat * len(parts) > MAX_LAYERS:
            raise ShapeError(f"shape: more than {MAX_LAYERS} layers; llama.cpp takes no more")
        layers += parts * repeat
    return layers


def _repeat(entry: object, where: str) -> int:
    repeat = _integer(entry.get("repeat", 1) if isinstance(entry, dict) else 1, f"{where}.repeat")
    if repeat < 1:
        raise ShapeError(f"shape: {where}.repeat is {repeat}; it must be at least 1")
    return repeat


def _layer(entry: object, where: str) -> LayerShape:
    given = dict(_object(entry, where, _LAYER | {"repeat", "head_dim"}))
    given.pop("repeat", None)
    if "head_dim" in given:
        head_dim = given.pop("head_dim")
        given = {"head_dim_k": head_dim, "head_dim_v": head_dim, **given}
    values: dict[str, Any] = dict.fromkeys(("n_head", "n_head_kv", "head_dim_k", "head_dim_v"), 0)
    for key, value in given.items():
        if key in _BOOLS:
            if not isinstance(value, bool):
                raise ShapeError(f"shape: {where}.{key} is {reprlib.repr(value)}; write true or false")
            values[key] = value
        elif key == "shares_with" and value is None:
            values[key] = None
        else:
            values[key] = _integer(value, f"{where}.{key}")
    owns = not (values.get("recurrent") or values.get("nextn") or values.get("shares_with") is not None)
    try:
        return LayerShape(**{"keeps_cache": owns, **values})
    except ShapeError as error:
        raise ShapeError(f"shape: {where}: {error}") from None


def _state(entry: object) -> RecurrentState | None:
    if entry is None:
        return None
    given = _object(entry, "state", {"n_conv", "n_state"})
    return RecurrentState(*(_integer(given.get(key), f"state.{key}") for key in ("n_conv", "n_state")))


def _object(entry: object, where: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise ShapeError(f"shape: {where} must be an object with the keys {', '.join(sorted(known))}")
    unknown = sorted(set(entry) - known)
    if unknown:
        name = reprlib.repr(unknown[0])
        raise ShapeError(f"shape: {where} has the unknown key {name}; known: {', '.join(sorted(known))}")
    return entry


def _integer(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ShapeError(f"shape: {where} is {reprlib.repr(value)}; write an integer")
    return value


def _text(top: Mapping[str, Any], key: str, default: str) -> str:
    value = top.get(key, default)
    if not isinstance(value, str):
        raise ShapeError(f"shape: {key} is {reprlib.repr(value)}; write a string")
    return value


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number here")
