"""Arguments that name a model by path, by a known name or by a repository, fetched when that is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


def fetched_model(text: str, *, sources: Sequence[str] = (), verify: bool = False) -> Path:
    """Return the file that --model or a NAME means; what is done for it is said on stderr."""
    from kvquant.assets.find import model_path  # only here: most commands are given a path
    from kvquant.cli.progress import progress_bar

    with progress_bar(text) as progress:
        return model_path(
            text,
            sources=sources,
            verify=verify,
            say=lambda line: click.echo(line, err=True),
            progress=progress or (lambda _done, _total: None),
        )


class _ModelFile(click.ParamType[Path]):
    name = "model"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Path:
        return value if isinstance(value, Path) else fetched_model(value)


#: The type of an option --model: a file, a name of `kvquant models`, or hf:OWNER/REPO/FILE.gguf.
MODEL_FILE = _ModelFile()
#: How its help shows what it takes.
MODEL_METAVAR = "NAME|FILE"
