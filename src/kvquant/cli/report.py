"""`kvquant report`: a validation as a page, as Markdown or as JSON."""

from __future__ import annotations

from pathlib import Path

import click

from kvquant.cli.options import json_option
from kvquant.documents import to_json
from kvquant.errors import UsageError
from kvquant.evals.validation.records import Folder
from kvquant.files import write_atomic
from kvquant.results.validation import read_result


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--html", metavar="FILE", help="Write one self-contained page.")
@click.option("--markdown", metavar="FILE", help="Write Markdown.")
@click.option("--figure", metavar="FILE", help="Write the figure of memory against quality, as .svg.")
@json_option
def report(run: Path, html: str | None, markdown: str | None, figure: str | None, as_json: bool) -> None:
    """Report a validation: verdicts first, then the evidence.

    RUN is a folder written by `kvquant validate`, or its results.json. Prints Markdown unless an option
    says otherwise.

    \b
    Example:
      kvquant report runs/today --html report.html
      kvquant report runs/today --markdown report.md --figure quality.svg
    """
    from kvquant.report.validation_text import read_excerpts, validation_markdown

    _check_outputs(html, markdown, figure)
    file = Folder(run).result if run.is_dir() else run
    result = read_result(file)
    logs = read_excerpts(result, file.parent)
    if html is not None:
        from kvquant.report.validation_page import validation_page

        write_atomic(html, validation_page(result, logs))
        click.echo(f"kvquant: wrote {html}", err=True)
    if markdown is not None:
        write_atomic(markdown, validation_markdown(result, logs))
        click.echo(f"kvquant: wrote {markdown}", err=True)
    if figure is not None:
        from kvquant.report.validation_figures import write_quality_figure

        write_quality_figure(result, figure)
        click.echo(f"kvquant: wrote {figure}", err=True)
    if as_json:
        click.echo(to_json(result))
    elif html is None and markdown is None and figure is None:
        click.echo(validation_markdown(result, logs), nl=False)


def _check_outputs(html: str | None, markdown: str | None, figure: str | None) -> None:
    """Refuse before the work what would fail after it."""
    if figure is not None and Path(figure).suffix.lower() != ".svg":
        raise UsageError(f"--figure {figure}: give a file name that ends in .svg")
    for option, path in (("--html", html), ("--markdown", markdown), ("--figure", figure)):
        if path is not None and not Path(path).parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {Path(path).parent}; make it first")
