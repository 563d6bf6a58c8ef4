"""`kvquant report`: a validation as a page, as Markdown or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kvquant.cli.options import json_option
from kvquant.errors import KVQuantError, UsageError
from kvquant.evals.validation.folder import Folder
from kvquant.evals.validation.result import read_result
from kvquant.files import write_atomic


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--html", metavar="FILE", help="Write one self-contained page.")
@click.option("--markdown", metavar="FILE", help="Write Markdown.")
@click.option("--figure", metavar="FILE", help="Write the figure of memory against quality, as .svg.")
@json_option
def report(run: Path, html: str | None, markdown: str | None, figure: str | None, as_json: bool) -> None:
    """Report a validation: verdicts first, then what they rest on.

    RUN is the folder that `kvquant validate` wrote, or its results.json. Without an option Markdown goes to
    standard output.

    \b
    Example:
      kvquant report runs/today --html report.html
      kvquant report runs/today --markdown report.md --figure quality.svg
    """
    from kvquant.report.log_excerpts import read_excerpts
    from kvquant.report.validation_markdown import validation_markdown

    _check_outputs(html, markdown, figure)
    file = Folder(run).result if run.is_dir() else run
    document = read_result(file).document()
    logs = read_excerpts(document, file.parent)
    if html is not None:
        from kvquant.report.validation_page import validation_page

        write_atomic(html, validation_page(document, logs))
        click.echo(f"kvquant: wrote {html}", err=True)
    if markdown is not None:
        write_atomic(markdown, validation_markdown(document, logs))
        click.echo(f"kvquant: wrote {markdown}", err=True)
    if figure is not None:
        _write_figure(document, figure)
        click.echo(f"kvquant: wrote {figure}", err=True)
    if as_json:
        click.echo(json.dumps(document, indent=1))
    elif html is None and markdown is None and figure is None:
        click.echo(validation_markdown(document, logs), nl=False)


def _check_outputs(html: str | None, markdown: str | None, figure: str | None) -> None:
    """Refuse before the work what would fail after it."""
    if figure is not None and Path(figure).suffix.lower() != ".svg":
        raise UsageError(f"--figure {figure}: the figure is written as .svg; name such a file")
    for option, path in (("--html", html), ("--markdown", markdown), ("--figure", figure)):
        if path is not None and not Path(path).parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {Path(path).parent}; make it first")


def _write_figure(document: Mapping[str, Any], path: str) -> None:
    from kvquant.report.drawing import standalone_svg
    from kvquant.report.validation_quality import quality_svg

    svg = quality_svg(document, narrow=False, prefix="quality")
    if svg is None:
        raise KVQuantError("no policy has a size and a quality yet: there is nothing to draw")
    write_atomic(path, standalone_svg(svg))
