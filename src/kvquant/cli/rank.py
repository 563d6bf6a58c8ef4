"""`kvquant rank`: runs by quality and speed, and which to ask what."""

from __future__ import annotations

from pathlib import Path

import click

from kvquant.cli.options import json_option
from kvquant.documents import to_json
from kvquant.evals.rank import ranking_of
from kvquant.evals.records import read_run
from kvquant.evals.validation.records import runs_in
from kvquant.report.comparison import ranking_table, routing_table
from kvquant.tables import terminal_width, text


@click.command("rank")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN [RUN...]")
@json_option
def rank_runs(runs: tuple[Path, ...], as_json: bool) -> None:
    """Order runs by one score, and name the best run of each category.

    RUN is the folder of a `kvquant eval`, or of a `kvquant validate`, which holds one run per policy.

    The score is quality × max(0.1, 60 / mean seconds per sample); quality sums weight times rate of right
    answers over the tests. It mixes quality and speed, which you may weigh differently; the routing table
    keeps them apart.

    \b
    Example:
      kvquant rank runs/*/
      kvquant rank runs/today
    """
    ranking = ranking_of([read_run(folder) for run in runs for folder in runs_in(run)])
    if as_json:
        click.echo(to_json(ranking))
        return
    click.echo(text(ranking_table(ranking), terminal_width()))
    click.echo()
    click.echo(text(routing_table(ranking), terminal_width()))
