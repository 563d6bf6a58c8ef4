"""--transform FILE, which several commands take: one reading, one check, one line about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:  # a transform needs numpy and gguf: what does not use one must not wait for them
    from kvquant.model.gguf_file import GgufModel
    from kvquant.model.shape import ModelShape
    from kvquant.transform import TransformFile

Command = TypeVar("Command", bound=Callable[..., Any])


def transform_option(
    help: str = "An exact change of K before it is stored (kvquant calibrate).", **settings: Any
) -> Callable[[Command], Command]:
    """Add --transform, --kv-transform FILE as ``transform``, a path; settings go to click."""
    names = ("--transform", "--kv-transform", settings.pop("name", "transform"))
    return click.option(*names, type=click.Path(path_type=Path), metavar="FILE", help=help, **settings)


def checked_transform(
    path: Path, model: GgufModel, shape: ModelShape | None, n_ctx: int | None, *, digest: bool = False
) -> TransformFile:
    """Open a transform for a model, and say on stderr when it is used deeper than it was calibrated.

    digest: compare the digest of the model's file too, which takes reading it. Raises TransformError.
    """
    from kvquant.transform import open_transform

    found = open_transform(path, model, shape, digest=digest)
    warning = None if n_ctx is None else found.depth_warning(n_ctx)
    if warning is not None:
        click.echo(f"kvquant: warning: {warning}", err=True)
    return found
