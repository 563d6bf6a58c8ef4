"""`kvquant published`: published numbers, recomputed."""

from __future__ import annotations

import json
from itertools import groupby

import click

from kvquant.analysis.published import Figure, recompute
from kvquant.cli.options import json_option


@click.command()
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Of the vectors."
)
@json_option
def published(seed: int, as_json: bool) -> None:
    """Recompute published numbers on KV-cache quantization and say which of them hold.

    Each number is measured twice: under the convention that explains it best, and as what it means for
    llama.cpp: ggml's own blocks, against an fp16 cache. It is reproduced when the second value prints as
    published, and reproduced under its convention when only the first does. docs/published-numbers.md
    explains each line. What is said of real language models is tested in docs/claims.md.

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
