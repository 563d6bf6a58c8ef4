"""`kvquant compare`: runs against a baseline run, by paired statistics."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from kvquant.cli.eval import table
from kvquant.cli.options import json_option
from kvquant.cli.validation_text import validation_text
from kvquant.errors import UsageError
from kvquant.evals.compare import Comparison, Paired, compare
from kvquant.evals.records import Run, read_run
from kvquant.evals.statistics import Interval
from kvquant.evals.suite import Rules, load_suite
from kvquant.evals.summary import summarise
from kvquant.evals.validation.assemble import load_validation
from kvquant.evals.validation.folder import is_validation


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN [RUN...]")
@click.option("--suite", metavar="NAME|FILE", help="Take the rules from here.  [default: the runs' suite]")
@json_option
def compare_runs(runs: tuple[Path, ...], suite: str | None, as_json: bool) -> None:
    """Compare runs of `kvquant eval` with the first, or show one of `kvquant validate`.

    Per category and in total: samples lost and gained against the baseline, the change in rate with its
    interval, the exact McNemar p adjusted for the number of runs (Holm), the smallest change such a run would
    have shown, and a verdict by the suite's rules: safe, costs, broken, or cannot tell. Of a single run the
    rates are shown, and of a validation what `kvquant validate` shows.

    \b
    Example:
      kvquant compare runs/f16 runs/q8_0 runs/q4_0
      kvquant compare runs/today
    """
    if any(is_validation(folder) for folder in runs):
        _show_validation(runs, suite, as_json)
        return
    baseline, *others = (read_run(folder) for folder in runs)
    rules = load_suite(suite or baseline.info.suite).rules
    found = compare(baseline, others, rules) if others else []
    if as_json:
        click.echo(json.dumps(_document(baseline, found, rules), indent=1))
        return
    click.echo(f"baseline {baseline.folder}: {baseline.info.model}, suite {baseline.info.suite}")
    click.echo(table(summarise(baseline)))
    for comparison in found:
        click.echo()
        click.echo(_text(comparison, rules))


def _show_validation(runs: tuple[Path, ...], suite: str | None, as_json: bool) -> None:
    if len(runs) > 1:
        raise UsageError(
            "a validation holds its own baseline; compare one at a time, or the runs in its folder tasks/"
        )
    result = load_validation(runs[0], load_suite(suite).rules if suite else None)
    click.echo(json.dumps(result.document(), indent=1) if as_json else validation_text(result))


def _document(baseline: Run, found: list[Comparison], rules: Rules) -> dict[str, object]:
    comparisons = [
        {
            "run": str(comparison.run.folder),
            "n_unpaired": comparison.n_unpaired,
            "summary": _summary(comparison.run),
            "rows": [row.document() for row in comparison.rows],
        }
        for comparison in found
    ]
    return {
        "baseline": str(baseline.folder),
        "rules": asdict(rules),
        "summary": _summary(baseline),
        "comparisons": comparisons,
    }


def _summary(run: Run) -> list[dict[str, object]]:
    return [entry.document() for entry in summarise(run)]


def _text(comparison: Comparison, rules: Rules) -> str:
    run = comparison.run
    lines = [f"{run.folder}: {run.info.model}", table(summarise(run)), "against the baseline"]
    if comparison.n_unpaired:
        lines[-1] += f"; left out, as only one of the two has them: {comparison.n_unpaired} samples"
    lines.append(
        f"{'category':<16} {'n':>5} {'lost':>5} {'gained':>6} {'change':>7}  {'95 % interval':<17} "
        f"{'p (Holm)':>8} {'finds':>6}  verdict"
    )
    lines += [_row(row) for row in comparison.rows]
    lines.append(
        f"'finds' is the smallest change found with probability {rules.power:g} where at least "
        f"{rules.disagreement:.0%} of samples differ; safe needs it to be at most {rules.safe_loss:.0%}"
    )
    return "\n".join(lines)


def _row(row: Paired) -> str:
    flips = row.flips
    change = "-" if flips.change is None else f"{flips.change:+.1%}"
    mde = "-" if row.mde is None else f"{row.mde:.1%}"
    return (
        f"{row.category:<16} {flips.n:>5} {flips.n_lost:>5} {flips.n_gained:>6} {change:>7}  "
        f"{_interval(row.interval):<17} {row.p_holm:>8.2g} {mde:>6}  {row.verdict}"
    )


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.low:+.1%} to {interval.high:+.1%}"
