"""`kvquant shape`: what was read from a model file, or a built-in shape, as text or as JSON to edit."""

from __future__ import annotations

from pathlib import Path

import click

from kvquant.cli.options import json_option, shape_from_options, shape_options
from kvquant.model.gguf_header import shown
from kvquant.model.presets import load_preset, preset_names
from kvquant.model.shape import LayerShape, ModelShape, runs
from kvquant.model.shape_json import shape_to_json


@click.command()
@shape_options
@click.option("--list", "list_all", is_flag=True, help="List the built-in shapes.")
@json_option
def shape(model: Path | None, shape: str | None, list_all: bool, as_json: bool) -> None:
    """Layers, heads, widths and windows of a model, and which layers keep a cache.

    --json prints the shape in the format of --shape FILE.json; edit it for a model whose architecture has
    no rules yet.

    \b
    Example:
      kvquant shape --model model.gguf
      kvquant shape --shape gemma-3-4b --json > mine.json
    """
    if list_all:
        for name in preset_names():
            preset = load_preset(name)
            layers = f"{preset.n_layer:>3} layers, {len(preset.kv_layers):>3} with a cache"
            click.echo(f"{name:<18} {layers}  {preset.name}")
        return
    found = shape_from_options(model, shape)
    click.echo(shape_to_json(found) if as_json else describe(found), nl=not as_json)


def describe(shape: ModelShape) -> str:
    """Return a shape as text: a line on the model, then one per run of equal layers."""
    trained = f", trained on {shape.n_ctx_train} tokens" if shape.n_ctx_train else ""
    lines = [
        f"{shape.name} ({shape.arch}): {shape.n_layer} layers, {len(shape.kv_layers)} with a cache{trained}"
    ]
    if shape.source:
        lines.append(f"source: {shown(shape.source)}")
    first = 0
    for count, layer in runs(shape.layers):
        last = first + count - 1
        place = f"{first}" if count == 1 else f"{first}-{last}"
        lines.append(f"{place:>9}  {_layer(layer)}")
        first += count
    if shape.state:
        values = f"{shape.state.n_conv} + {shape.state.n_state} float32 values"
        lines.append(f"each recurrent layer keeps {values} per sequence")
    return "\n".join(lines)


def _layer(layer: LayerShape) -> str:
    parts = []
    if layer.n_head_kv:
        same = layer.head_dim_k == layer.head_dim_v
        widths = f"{layer.head_dim_k}" if same else f"K {layer.head_dim_k} and V {layer.head_dim_v}"
        parts.append(f"{layer.n_head} heads, {layer.n_head_kv} KV heads of {widths}")
    if layer.window:
        parts.append(f"window {layer.window}")
    if layer.recurrent:
        parts.append("recurrent")
    if not layer.stores_v:
        parts.append("V is a part of K")
    if layer.nextn:
        parts.append("nextn layer")
    if layer.shares_with is not None:
        parts.append(f"reads the cache of layer {layer.shares_with}")
    elif not layer.keeps_cache:
        parts.append("no cache")
    return ", ".join(parts)
