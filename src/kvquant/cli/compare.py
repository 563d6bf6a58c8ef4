"""`kvquant compare`: runs against a baseline run, by paired statistics."""

from __future__ import annotations

from pathlib import Path

import click

from kvquant.cli.options import json_option
from kvquant.documents import to_json
from kvquant.errors import UsageError
from kvquant.evals.compare import comparison_of, rules_of
from kvquant.evals.records import read_run
from kvquant.evals.suite import load_suite
from kvquant.evals.validation.assemble import load_validation
from kvquant.evals.validation.records import is_validation
from kvquant.report.comparison import comparison_text
from kvquant.report.validation_text import validation_text
from kvquant.tables import terminal_width


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN [RUN...]")
@click.option("--suite", metavar="NAME|FILE", help="Take the rules from here.  [default: the baseline's]")
@json_option
def compare_runs(runs: tuple[Path, ...], suite: str | None, as_json: bool) -> None:
    """Compare runs of `kvquant eval` with the first, or show one of `kvquant validate`.

    Per category and in total: samples lost and gained against the baseline, the change in rate with its
    interval, the exact McNemar p adjusted for the number of runs (Holm), the smallest change the runs
    could have detected, and a verdict by the suite's rules: safe, costs, broken, or cannot tell. A single
    run shows its rates, a validation what `kvquant validate` shows.

    \b
    Example:
      kvquant compare runs/f16 runs/q8_0 runs/q4_0
      kvquant compare runs/today
    """
    if any(is_validation(folder) for folder in runs):
        if len(runs) > 1:
            raise UsageError(
                "a validation has its own baseline; compare one at a time, or the runs in its folder tasks/"
            )
        result = load_validation(runs[0], load_suite(suite).rules if suite else None)
        click.echo(to_json(result) if as_json else validation_text(result, terminal_width()))
        return
    baseline, *others = (read_run(folder) for folder in runs)
    found = comparison_of(baseline, others, rules_of(baseline, suite))
    click.echo(to_json(found) if as_json else comparison_text(found, terminal_width()))
