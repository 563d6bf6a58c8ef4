"""Arguments that name a model by path, by a known name or by a repository, fetched when that is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click


def fetched_model(text: str, *, sources: Sequence[str] = (), verify: bool = False) -> Path:
    """Return the file that --model or a NAME means; what is done for it is said on stderr."""
    from kvquant.assets.find import model_path  # only here: most commands are given a path
    from kvquant.cli.progress import counted

    with counted(text) as progress:
        return model_path(
            text,
            sources=sources,
            verify=verify,
            say=lambda line: click.echo(line, err=True),
            progress=progress,
        )


def fetched_text(value: str) -> Path:
    """Return the file that --text or a NAME means; what is done for it is said on stderr."""
    from kvquant.assets.find import text_path  # only here: most commands are given a path

    return text_path(value, say=lambda line: click.echo(line, err=True))
