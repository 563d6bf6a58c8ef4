"""`kvquant memory`: the bytes llama.cpp allocates for a KV cache, and the longest context a budget allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from kvquant.cli.options import (
    PolicyChoice,
    budget_option,
    ctx_option,
    json_option,
    policy_options,
    sequence_options,
    shape_from_options,
    shape_options,
)
from kvquant.cli.transforms import checked_transform, transform_option
from kvquant.documents import to_json
from kvquant.errors import UsageError
from kvquant.memory import (
    largest_context,
    memory_document,
    memory_of,
    server_options,
    share_bytes,
)
from kvquant.memory.cells import DEFAULT_BATCH, DEFAULT_UBATCH, PADDING
from kvquant.model.gguf_file import open_model
from kvquant.model.shape import ModelShape
from kvquant.report.memory import memory_text
from kvquant.report.transform import transform_line
from kvquant.results.transform import TransformUsed
from kvquant.tables import terminal_width
from kvquant.units import format_n_bytes


@click.command()
@shape_options
@policy_options
@ctx_option("Tokens for all sequences, such as 32k; 0: the training context.", least=0)
@budget_option("Find the longest context that fits 256MiB, or 0.35x of f16's bytes at --ctx.")
@sequence_options
@transform_option("Count an exact change of K as well (kvquant calibrate).")
@click.option("--swa-full", is_flag=True, help="Full-size cache for sliding-window layers.")
@click.option(
    "-b",
    "--batch",
    "--batch-size",
    "batch",
    default=DEFAULT_BATCH,
    show_default=True,
    metavar="B",
    help="Logical batch.",
)
@click.option(
    "-ub",
    "--ubatch",
    "--ubatch-size",
    "ubatch",
    default=DEFAULT_UBATCH,
    show_default=True,
    metavar="U",
    help="Physical batch.",
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
    transform: Path | None,
    swa_full: bool,
    batch: int,
    ubatch: int,
    no_flash_attn: bool,
    as_json: bool,
) -> None:
    """Bytes of the KV cache, per layer and in total, as the pinned llama.cpp allocates them.

    Options and defaults are llama-server's: without --parallel it serves four sequences from one buffer,
    which matters only for sliding windows and recurrent states. Give --ctx or --budget. A budget in bytes
    includes the recurrent states of hybrid models; a share is relative to the f16 KV cache at --ctx, or
    at the training context.

    \b
    Example:
      kvquant memory --shape qwen3.5-2b --ctx 32k --policy first11:q8_0,rest:q4_0
      kvquant memory --model model.gguf --budget 256MiB --policy 0-10:q8_0,11-31:q4_0
    """
    if ctx is None and budget is None:
        raise UsageError("give --ctx N or --budget SIZE|SHARE")
    if ctx is not None and isinstance(budget, int):
        raise UsageError("give either --ctx N or --budget SIZE, not both")
    the_shape = shape_from_options(model, shape)
    resolved = policy.on(the_shape)
    n_ctx = PADDING if isinstance(budget, int) else ctx or _training_context(the_shape)
    options = replace(
        server_options(n_ctx, parallel, kv_unified=kv_unified),
        swa_full=swa_full,
        n_batch=batch,
        n_ubatch=ubatch,
        flash_attn=not no_flash_attn,
    )
    n_bytes = share_bytes(the_shape, budget, options) if isinstance(budget, float) else budget
    if n_bytes is not None:
        options = replace(options, n_ctx=largest_context(the_shape, resolved, n_bytes, options))
    used, transform_bytes = None, 0
    if transform is not None:
        used, transform_bytes = _transform(transform, model, the_shape, options.n_ctx)
    if as_json:
        default = (policy.k_default, policy.v_default)
        document = memory_document(the_shape, resolved, str(policy.policy), options, default, n_bytes)
        click.echo(to_json(replace(document, transform=used, transform_bytes=transform_bytes)))
        return
    k_default, v_default = policy.k_default, policy.v_default
    default_text = k_default if k_default == v_default else f"k={k_default}/v={v_default}"
    found = memory_of(the_shape, resolved, options)
    types = f"policy {policy.policy}, default {default_text}"
    click.echo(memory_text(the_shape, found, types, options, n_bytes, terminal_width()))
    if used is not None:
        click.echo(f"transform {transform_line(used)}; {format_n_bytes(transform_bytes)} in memory")


def _transform(path: Path, model: Path | None, shape: ModelShape, n_ctx: int) -> tuple[TransformUsed, int]:
    """What is said of a transform, and the bytes that llama.cpp keeps of it; checked against a model's file
    where there is one, else against the shape alone.
    """
    from kvquant.transform import check_layers, loaded_bytes, read_transform, transform_file

    transform = read_transform(path)
    if model is not None:
        used = checked_transform(path, open_model(model), shape, n_ctx).used
    else:
        check_layers(transform, shape, str(path))
        used = transform_file(path, transform).used
    return used, loaded_bytes(transform, shape)


def _training_context(shape: ModelShape) -> int:
    if not shape.n_ctx_train:
        raise UsageError(f"{shape.name} does not state its training context; give --ctx a number")
    return shape.n_ctx_train
