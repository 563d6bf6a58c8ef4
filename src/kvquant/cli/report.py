"""`kvquant report`: a validation as a page, as Markdown or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvquant.cli.options import json_option
from kvquant.errors import UsageError
from kvquant.evals.validation.folder import Folder
from kvquant.evals.validation.result import read_result
from kvquant.files import write_atomic


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--html", metavar="FILE", help="Write one self-contained page.")
@click.option("--markdown", metavar="FILE", help="Write Markdown.")
@json_option
def report(run: Path, html: str | None, markdown: str | None, as_json: bool) -> None:
    """Report a validation: verdicts first, then what they rest on.

    RUN is the folder that `kvquant validate` wrote, or its results.json. Without an option Markdown goes to
    standard output.

    \b
    Example:
      kvquant report runs/today --html report.html
      kvquant report runs/today --markdown report.md
    """
    from kvquant.report.log_excerpts import read_excerpts
    from kvquant.report.validation_markdown import validation_markdown

    for option, path in (("--html", html), ("--markdown", markdown)):
        if path is not None and not Path(path).parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {Path(path).parent}; make it first")
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
    if as_json:
        click.echo(json.dumps(document, indent=1))
    elif html is None and markdown is None:
        click.echo(validation_markdown(document, logs), nl=False)
