"""`kvquant published`: published numbers, recomputed."""

from __future__ import annotations

import json
from itertools import groupby

import click

from kvquant.analysis.published import Figure, recompute
from kvquant.cli.options import json_option


@click.command()
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Seed of the vectors."
)
@json_option
def published(seed: int, as_json: bool) -> None:
    """Recompute published numbers on KV-cache quantization and say which of them hold.

    Each number is measured twice: under the convention that explains it best, and for llama.cpp as it is,
    with ggml's own blocks against an fp16 cache. If the second value agrees, the number is reproduced; if
    only the first does, it is reproduced under its convention. docs/published-numbers.md explains each
    line; docs/claims.md tests common claims on real language models.

    \b
    Example:
      kvquant published
      kvquant published --json
    """
    figures = recompute(seed)
    if as_json:
        document = {"seed": seed, "figures": [_document(figure) for figure in figures]}
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    for source, group in groupby(figures, lambda figure: figure.source):
        click.echo(source)
        for figure in group:
            _print(figure)


def _print(figure: Figure) -> None:
    click.echo(f"  {figure.claim}: {figure.published}")
    click.echo(f"    {figure.sentence}")
    click.echo(f"    convention {figure.convention.value:<12.6g} {figure.convention.how}")
    click.echo(f"    actual     {figure.actual.value:<12.6g} {figure.actual.how}")
    if figure.note:
        click.echo(f"    {figure.note}")


def _document(figure: Figure) -> dict[str, object]:
    readings = {
        name: {"value": reading.value, "standard_error": reading.standard_error, "how": reading.how}
        for name, reading in (("convention", figure.convention), ("actual", figure.actual))
    }
    return {
        "key": figure.key,
        "source": figure.source,
        "claim": figure.claim,
        "published": figure.published,
        **readings,
        "verdict": str(figure.verdict),
        "note": figure.note,
    }
