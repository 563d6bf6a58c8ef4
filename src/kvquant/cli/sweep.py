"""`kvquant sweep`: models, policies, threads, cores, flash attention and contexts, cell by cell."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kvquant.cli.options import json_option, llama_bin_option, out_option, programs_folder
from kvquant.documents import to_json
from kvquant.errors import UsageError
from kvquant.report.sweep_tables import sweep_text
from kvquant.results.sweep import DecisionRow, Ending
from kvquant.sweep.csv_table import read_published
from kvquant.sweep.decide import decide
from kvquant.sweep.engine import Countdown, Here, left_of, plan_text, sweep
from kvquant.sweep.journal import Record, open_journal, start_of
from kvquant.sweep.output import write_results
from kvquant.sweep.plan import SweepPlan, Task, check_plan, counts, listed, read_plan
from kvquant.sweep.quality import ByModel, read_quality
from kvquant.sweep.survey import check_runnable, survey
from kvquant.tables import terminal_width


@click.command("sweep")
@click.argument("plan", type=click.Path(path_type=Path), metavar="[PLAN]", required=False)
@click.option("-m", "--model", "models", multiple=True, metavar="NAME|FILE", help="A model; may be repeated.")
@click.option("--policy", "policies", multiple=True, metavar="POLICY", help="A policy; may be repeated.")
@click.option("--threads", metavar="N,N", help="Numbers of threads, such as 2,4.")
@click.option("--cpus", metavar="LIST,LIST", help="Cores: 4-7,0-7, or all, big, little; + joins: 0+2-3.")
@click.option("--flash-attn", metavar="on,off", help="Flash attention: on, off or both.")
@click.option("--ctx", metavar="N,N", help="Contexts, such as 4k,16k,64k.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="How often each cell is measured.")
@out_option
@llama_bin_option
@click.option("--dry-run", is_flag=True, help="Say what would be run.")
@json_option
def sweep_boards(
    plan: Path | None,
    models: tuple[str, ...],
    policies: tuple[str, ...],
    threads: str | None,
    cpus: str | None,
    flash_attn: str | None,
    ctx: str | None,
    rounds: int | None,
    out: Path,
    llama_bin: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure every setting that matters on this board, and say what to choose.

    \b
    Example:
      kvquant sweep plan.toml --out runs/board
    """
    the_plan = _plan(plan, models, policies, threads, cpus, flash_attn, ctx, rounds)
    known, published = _beside(the_plan)
    if dry_run:
        click.echo(plan_text(the_plan, out))
        return
    host = survey(the_plan, programs_folder(llama_bin) if the_plan.models else None)
    check_runnable(the_plan, host)
    for warning in host.board.warnings:
        click.echo(f"kvquant: warning: {warning}", err=True)
    progress = _Progress()
    runner = Here(the_plan, host, progress.begin)
    with open_journal(out, start_of(the_plan, runner.boards, ["kvquant", *sys.argv[1:]])) as writer:
        progress.plan(len(left_of(the_plan, runner.boards, writer.journal)))
        try:
            journal = sweep(the_plan, runner, writer, progress.record)
        finally:
            progress.end()
        result = decide(journal, known, published)
        write_results(out, result)
    click.echo(to_json(result) if as_json else sweep_text(result, terminal_width()))


def _beside(plan: SweepPlan) -> tuple[ByModel, tuple[DecisionRow, ...]]:
    """What is read before anything runs: quality and published tables."""
    known = read_quality(map(Path, plan.quality))
    return known, tuple(row for path in plan.published for row in read_published(Path(path)))


def _plan(
    path: Path | None,
    models: tuple[str, ...],
    policies: tuple[str, ...],
    threads: str | None,
    cpus: str | None,
    flash_attn: str | None,
    ctx: str | None,
    rounds: int | None,
) -> SweepPlan:
    """The plan of a file, if any, with what options say instead."""
    changes: dict[str, Any] = {
        "models": models or None,
        "policies": policies or None,
        "threads": counts(threads, "--threads") if threads else None,
        "cpus": listed(cpus) if cpus else None,
        "flash_attn": listed(flash_attn) if flash_attn else None,
        "ctx": listed(ctx) if ctx else None,
        "rounds": rounds,
    }
    for entry in changes["flash_attn"] or ():
        if entry not in ("on", "off"):
            raise UsageError(f"--flash-attn {flash_attn!r}: write on, off or on,off")
    given = {name: value for name, value in changes.items() if value is not None}
    if path is None and not models:
        raise UsageError("name a plan, or a model with --model; see kvquant sweep --help")
    base = SweepPlan() if path is None else read_plan(path)
    return check_plan(replace(base, **given), "options" if path is None else str(path))


class _Progress:
    """One line on stderr with the time left, only on a terminal; what goes wrong always."""

    def __init__(self) -> None:
        self._left = Countdown(0)
        self._shown = sys.stderr.isatty()

    def plan(self, n_left: int) -> None:
        """So many cells are left."""
        self._left = Countdown(n_left)

    def begin(self, task: Task) -> None:
        """Show what begins."""
        if self._shown:
            click.echo(f"\r\x1b[K{self._left.line(task.key)}", err=True, nl=False)

    def record(self, found: Record) -> None:
        """Count it, and say what came to nothing."""
        self._left.n_done += 1
        if found.ending not in (Ending.DONE, Ending.REFUSED):
            self.end()
            click.echo(f"kvquant: {found.key}: {found.ending}: {found.detail}", err=True)

    def end(self) -> None:
        """Clear the line."""
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)
