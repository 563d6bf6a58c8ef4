"""`kvquant memory`: the bytes llama.cpp allocates for a KV cache, and the longest context a budget allows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from kvquant.cli.options import (
    PolicyChoice,
    budget_option,
    ctx_option,
    json_option,
    policy_options,
    shape_from_options,
    shape_options,
)
from kvquant.errors import UsageError
from kvquant.memory import (
    ContextOptions,
    KVMemory,
    baselines,
    largest_context,
    memory_document,
    memory_of,
    share_bytes,
)
from kvquant.memory.cells import DEFAULT_BATCH, DEFAULT_UBATCH, MAX_CONTEXT, PADDING
from kvquant.model.shape import ModelShape
from kvquant.units import format_n_bytes

SERVER_PARALLEL = 4
"""Slots of a llama-server without -np, which then share one buffer (tools/server/server.cpp at the pin)."""


@click.command()
@shape_options
@policy_options
@ctx_option("Tokens for all sequences, such as 32k; 0: the training context.", least=0)
@budget_option("Find the longest context that fits 256MiB, or 0.35x of what f16 takes at --ctx.")
@click.option(
    "--parallel", type=int, metavar="P", help="Sequences (-np). Left out: 4 in one buffer, as llama-server."
)
@click.option("--kv-unified", is_flag=True, help="One buffer for all sequences (-kvu).")
@click.option("--swa-full", is_flag=True, help="Full-size cache for sliding-window layers (--swa-full).")
@click.option("--batch", default=DEFAULT_BATCH, show_default=True, metavar="B", help="Logical batch (-b).")
@click.option(
    "--ubatch", default=DEFAULT_UBATCH, show_default=True, metavar="U", help="Physical batch (-ub)."
)
@click.option("--no-flash-attn", is_flag=True, help="Flash attention off (-fa off).")
@json_option
def memory(
    model: Path | None,
    shape: str | None,
    policy: PolicyChoice,
    ctx: int | None,
    budget: int | float | None,
    parallel: int | None,
    kv_unified: bool,
    swa_full: bool,
    batch: int,
    ubatch: int,
    no_flash_attn: bool,
    as_json: bool,
) -> None:
    """Bytes of the KV cache, per layer and in total, as the pinned llama.cpp allocates them.

    Options mean what they mean to llama-server, and so do their defaults: without --parallel it serves four
    sequences from one buffer, which only matters for sliding windows and recurrent states. Give --ctx or
    --budget. A budget in bytes covers the recurrent states of hybrid models too; a share of f16 is one of the
    KV cache at --ctx, or at the training context.

    \b
    Example:
      kvquant memory --shape qwen3.5-2b --ctx 32k --policy first11:q8_0,rest:q4_0
      kvquant memory --model model.gguf --budget 256MiB --policy 0-10:q8_0,11-31:q4_0
    """
    if ctx is None and budget is None:
        raise UsageError("give --ctx N or --budget SIZE|SHARE")
    if ctx is not None and isinstance(budget, int):
        raise UsageError("--ctx N and --budget SIZE are two questions; give one of them")
    the_shape = shape_from_options(model, shape)
    resolved = policy.on(the_shape)
    options = ContextOptions(
        n_ctx=PADDING if isinstance(budget, int) else ctx or _training_context(the_shape),
        n_parallel=SERVER_PARALLEL if parallel is None else parallel,
        kv_unified=kv_unified or parallel is None,
        swa_full=swa_full,
        n_batch=batch,
        n_ubatch=ubatch,
        flash_attn=not no_flash_attn,
    )
    n_bytes = share_bytes(the_shape, budget, options) if isinstance(budget, float) else budget
    if n_bytes is not None:
        options = replace(options, n_ctx=largest_context(the_shape, resolved, n_bytes, options))
    if as_json:
        document = memory_document(the_shape, resolved, str(policy.policy), options)
        document["default"] = {"k": policy.k_default, "v": policy.v_default}
        document["budget_bytes"] = n_bytes
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    found = memory_of(the_shape, resolved, options)
    click.echo(_header(the_shape, policy, options))
    if n_bytes is not None:
        click.echo(_budget_line(the_shape, options, n_bytes))
    click.echo(_table(the_shape, found))
    click.echo(_comparison(the_shape, found, options))


def _training_context(shape: ModelShape) -> int:
    if not shape.n_ctx_train:
        raise UsageError(f"{shape.name} does not say its training context; give --ctx a number")
    return shape.n_ctx_train


def _header(shape: ModelShape, policy: PolicyChoice, options: ContextOptions) -> str:
    k_default, v_default = policy.k_default, policy.v_default
    default = k_default if k_default == v_default else f"k={k_default}/v={v_default}"
    sequences = "1 sequence"
    if options.n_parallel > 1:
        buffers = "one buffer" if options.kv_unified else "their own buffers"
        sequences = f"{options.n_parallel} sequences in {buffers}"
    types = f"policy {policy.policy}, default {default}"
    return f"{shape.name} ({shape.arch}), {types}, {options.n_ctx} tokens, {sequences}"


def _budget_line(shape: ModelShape, options: ContextOptions, n_bytes: int) -> str:
    step = PADDING * (1 if options.kv_unified else options.n_parallel)
    if options.n_ctx + step > MAX_CONTEXT:
        return f"any context fits {format_n_bytes(n_bytes)}: the cache stops growing"
    trained = f", the model was trained on {shape.n_ctx_train}" if shape.n_ctx_train else ""
    return f"{options.n_ctx} tokens is the longest context within {format_n_bytes(n_bytes)}{trained}"


def _table(shape: ModelShape, memory: KVMemory) -> str:
    """One line per layer with a cache, K and V by type and bytes."""
    lines = [f"{'layer':>5}  {'kv':>3}  {'cells':>9}  {'K':<14} {'bytes':>14}  {'V':<14} {'bytes':>14}"]
    for layer in memory.layers:
        stored = shape.layers[layer.layer].stores_v
        v_type, v_bytes = (layer.v_type, str(layer.v_bytes)) if stored else ("in K", "-")
        lines.append(
            f"{layer.layer:>5}  {layer.kv_index:>3}  {layer.n_cells:>9}  {layer.k_type:<14} "
            f"{layer.k_bytes:>14}  {v_type:<14} {v_bytes:>14}{'  window' if layer.windowed else ''}"
        )
    return "\n".join(lines)


def _comparison(shape: ModelShape, memory: KVMemory, options: ContextOptions) -> str:
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
        lines.append("recurrent states come on top; this shape does not say how large they are")
    elif memory.recurrent_bytes:
        lines.append(
            f"{_amount('recurrent', memory.recurrent_bytes)}  on top, float32 in {shape.n_recurrent} layers"
        )
    if memory.not_runnable:
        lines.append(f"computed only: llama.cpp has no cache of type {', '.join(memory.not_runnable)}")
    return "\n".join(lines)


def _amount(name: str, n_bytes: int) -> str:
    return f"{name:<12} {n_bytes:>15} B  {format_n_bytes(n_bytes):>12}"


def _total(name: str, n_bytes: int, in_f16: int) -> str:
    return _amount(name, n_bytes) + (f"  {n_bytes / in_f16:6.1%} of f16" if in_f16 else "")
