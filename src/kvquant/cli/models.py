"""`kvquant models`: the models known by name, and fetching one."""

from __future__ import annotations

import click

from kvquant.assets.fetch_model import SOURCES, SOURCES_VARIABLE, is_fetched, model_place
from kvquant.assets.registry import Model
from kvquant.assets.registry import models as known_models
from kvquant.cli.names import fetched_model
from kvquant.cli.options import json_option
from kvquant.documents import to_document, to_json
from kvquant.units import format_n_bytes


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models that can be fetched by name; `kvquant models get NAME` fetches one.

    Every --model that takes a file also takes these names, and fetches the model on first use.

    \b
    Example:
      kvquant models
      kvquant models get smollm2-135m
    """
    if context.invoked_subcommand is not None:
        return
    if as_json:
        listed = [{**to_document(model), "path": _path(model)} for model in known_models().values()]
        click.echo(to_json({"models": listed}))
        return
    rows: list[tuple[str, ...]] = [
        ("name", "architecture", "layers", "KV heads", "context", "size", "here", "licence")
    ]
    rows += [_row(model) for model in known_models().values()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@models.command()
@click.argument("name")
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=click.Choice(SOURCES),
    help=f"Source to try; repeat, in order.  [default: ${SOURCES_VARIABLE}, else {','.join(SOURCES)}]",
)
def get(name: str, sources: tuple[str, ...]) -> None:
    """Fetch the model NAME, verify it, and print its path; a model already here is only verified.

    NAME is listed by `kvquant models`, or is hf:OWNER/REPO/FILE.gguf. An interrupted fetch resumes after
    the last complete part.

    \b
    Example:
      kvquant models get qwen2.5-coder-0.5b
      kvquant models get hf:Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/qwen2.5-coder-0.5b-instruct-q8_0.gguf
    """
    click.echo(str(fetched_model(name, sources=sources, verify=True)))


def _row(model: Model) -> tuple[str, ...]:
    return (
        model.name,
        model.architecture,
        str(model.n_layer),
        f"{model.n_head_kv} of {model.head_dim}",
        str(model.n_ctx_train),
        format_n_bytes(model.n_bytes),
        "yes" if is_fetched(model) else "no",
        model.licence,
    )


def _path(model: Model) -> str | None:
    return str(model_place(model)) if is_fetched(model) else None
