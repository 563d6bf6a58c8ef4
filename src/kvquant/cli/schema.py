"""`kvquant schema`: the JSON Schema of a document that commands print."""

from __future__ import annotations

import click

from kvquant.schemas import schema_names, schema_text


@click.command()
@click.argument("name", required=False)
def schema(name: str | None) -> None:
    """Print the JSON Schema of a --json document, or the names of all schemas.

    Later versions may add keys; readers should ignore keys they do not know.

    \b
    Example:
      kvquant schema
      kvquant schema validation > validation.schema.json
    """
    click.echo("\n".join(schema_names()) if name is None else schema_text(name), nl=name is None)
