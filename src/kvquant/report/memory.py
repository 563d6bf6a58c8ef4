"""The bytes of a cache as text: one line per layer, the totals beside uniform types."""

from __future__ import annotations

from kvquant.formats.registry import not_in_llama
from kvquant.memory import ContextOptions, KVMemory, baselines
from kvquant.memory.cells import MAX_CONTEXT, PADDING
from kvquant.model.shape import ModelShape
from kvquant.tables import NONE, Table, text
from kvquant.units import format_n_bytes


def memory_text(
    shape: ModelShape,
    memory: KVMemory,
    types: str,
    options: ContextOptions,
    budget: int | None = None,
    width: int | None = None,
) -> str:
    """Return what a terminal shows. types: the policy in words. budget: bytes the context was to fit into.

    width: of the terminal, None for no limit.
    """
    blocks = [
        f"{shape.name} ({shape.arch}), {types}, {options.n_ctx} tokens, {options.sequences_text}",
        *([] if budget is None else [_budget_line(shape, options, budget)]),
        text(layer_table(shape, memory), width),
        *_comparison(shape, memory, options),
    ]
    return "\n".join(blocks)


def layer_table(shape: ModelShape, memory: KVMemory) -> Table:
    """One row per layer with a cache, K and V by type and bytes."""
    rows = []
    for layer in memory.layers:
        stored = shape.layers[layer.layer].stores_v
        v_type, v_bytes = (layer.v_type, str(layer.v_bytes)) if stored else ("in K", NONE)
        rows.append(
            (
                *(str(layer.layer), str(layer.kv_index), str(layer.n_cells)),
                *(layer.k_type, str(layer.k_bytes), v_type, v_bytes),
                "window" if layer.windowed else "",
            )
        )
    return Table(("layer", "kv", "cells", "K", "bytes", "V", "bytes", ""), tuple(rows), words=(3, 5, 7))


def _budget_line(shape: ModelShape, options: ContextOptions, n_bytes: int) -> str:
    step = PADDING * (1 if options.kv_unified else options.n_parallel)
    if options.n_ctx + step > MAX_CONTEXT:
        return f"any context fits {format_n_bytes(n_bytes)}: the cache stops growing at some length"
    trained = f", the model was trained on {shape.n_ctx_train}" if shape.n_ctx_train else ""
    return f"{options.n_ctx} tokens is the longest context within {format_n_bytes(n_bytes)}{trained}"


def _comparison(shape: ModelShape, memory: KVMemory, options: ContextOptions) -> list[str]:
    uniform = baselines(shape, options)
    in_f16 = uniform["f16"].kv_bytes
    lines = [_total("this policy", memory.kv_bytes, in_f16)]
    lines += [_total(f"all {name}", other.kv_bytes, in_f16) for name, other in uniform.items()]
    if memory.window_bytes:
        lines.append(
            f"{'':<12} of this policy, {format_n_bytes(memory.base_bytes)} in full-attention layers and "
            f"{format_n_bytes(memory.window_bytes)} in sliding-window layers"
        )
    if memory.recurrent_bytes is None:
        lines.append("recurrent states come on top; this shape does not state their size")
    elif memory.recurrent_bytes:
        lines.append(
            f"{_amount('recurrent', memory.recurrent_bytes)}  on top, float32 in {shape.n_recurrent} layers"
        )
    if memory.not_runnable:
        lines.append(f"computed only: {not_in_llama(memory.not_runnable)}")
    return lines


def _amount(name: str, n_bytes: int) -> str:
    return f"{name:<12} {n_bytes:>15} B  {format_n_bytes(n_bytes):>12}"


def _total(name: str, n_bytes: int, in_f16: int) -> str:
    return _amount(name, n_bytes) + (f"  {n_bytes / in_f16:6.1%} of f16" if in_f16 else "")
