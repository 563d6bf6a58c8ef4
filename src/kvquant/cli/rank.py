"""`kvquant rank`: runs by quality and speed, and which to ask what."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvquant.cli.options import json_option
from kvquant.evals.rank import Ranked, Route, rank, routes
from kvquant.evals.records import read_run
from kvquant.evals.validation.folder import is_repeat, is_validation, task_folders


@click.command("rank")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN [RUN...]")
@json_option
def rank_runs(runs: tuple[Path, ...], as_json: bool) -> None:
    """Order runs by one score, and name the best run of each category.

    A run is one of `kvquant eval`, or the folder of a `kvquant validate`, which has one for each policy.

    The score is quality × max(0.1, 60 / mean seconds a sample); quality is the sum over the tests of weight
    times rate of right answers. It mixes two things that a user may weigh otherwise; the routing table keeps
    them apart.

    \b
    Example:
      kvquant rank runs/*/
      kvquant rank runs/today
    """
    found = [read_run(folder) for run in runs for folder in _folders(run)]
    ranked, routing = rank(found), routes(found)
    if as_json:
        click.echo(json.dumps(_document(ranked, routing), indent=1))
        return
    click.echo(_ranking(ranked))
    click.echo()
    click.echo(_routing(routing))


def _folders(run: Path) -> list[Path]:
    """The runs in a folder: itself, or those of a validation, the baseline's second left out."""
    if not is_validation(run):
        return [run]
    return [folder for folder in task_folders(run) if not is_repeat(folder)]


def _document(ranked: list[Ranked], routing: list[Route]) -> dict[str, object]:
    return {
        "ranking": [
            {
                "run": str(entry.run.folder),
                "model": entry.run.info.model,
                "quality": entry.quality,
                "most_quality": entry.most_quality,
                "wall_seconds": entry.wall_seconds,
                "wall_seconds_interval": entry.wall_interval,
                "score": entry.score,
            }
            for entry in ranked
        ],
        "routing": [
            {
                "category": route.category,
                "run": str(route.run.folder),
                "rate": route.rate,
                "wall_seconds": route.wall_seconds,
                "level": [str(run.folder) for run in route.level],
            }
            for route in routing
        ],
    }


def _ranking(ranked: list[Ranked]) -> str:
    width = max(len(str(entry.run.folder)) for entry in ranked)
    lines = [f"{'run':<{width}}  {'quality':>12}  {'seconds':>8}  {'95 % interval':<16} {'score':>7}"]
    for entry in ranked:
        quality = "unfinished" if entry.quality is None else f"{entry.quality:.2f} of {entry.most_quality:g}"
        interval = entry.wall_interval
        sure = "-" if interval is None else f"{interval.low:.2f} to {interval.high:.2f}"
        score = "-" if entry.score is None else f"{entry.score:.1f}"
        lines.append(
            f"{entry.run.folder!s:<{width}}  {quality:>12}  {entry.wall_seconds:>8.2f}  {sure:<16} {score:>7}"
        )
    return "\n".join(lines)


def _routing(routing: list[Route]) -> str:
    width = max(len(str(route.run.folder)) for route in routing)
    lines = [f"{'category':<16} {'ask':<{width}}  {'rate':>6}  {'seconds':>8}  not to be told from it"]
    for route in routing:
        level = ", ".join(str(run.folder) for run in route.level) or "-"
        lines.append(
            f"{route.category:<16} {route.run.folder!s:<{width}}  {route.rate:>6.1%}  "
            f"{route.wall_seconds:>8.2f}  {level}"
        )
    return "\n".join(lines)
