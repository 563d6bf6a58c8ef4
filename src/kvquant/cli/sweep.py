"""`kvquant sweep`: models, policies, threads, cores, flash attention and contexts, cell by cell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from kvquant.cli.options import MODEL, PLAIN_TYPE, json_option, llama_bin_option, out_option, programs_folder
from kvquant.cli.progress import StatusLine
from kvquant.documents import to_json
from kvquant.errors import UsageError
from kvquant.files import write_atomic
from kvquant.report.sweep_page import sweep_page
from kvquant.report.sweep_tables import sweep_text
from kvquant.results.provenance import command_line
from kvquant.results.sweep import DecisionRow, Ending, SweepResult
from kvquant.sweep.csv_table import read_published
from kvquant.sweep.decide import decide
from kvquant.sweep.engine import Countdown, Here, Runner, left_of, plan_text, sweep
from kvquant.sweep.journal import JOURNAL, Record, open_journal, read_journal, start_of
from kvquant.sweep.output import write_results
from kvquant.sweep.plan import SweepPlan, Task, check_plan, counts, listed, read_plan
from kvquant.sweep.presets import choose, draft_of, preset_of, preset_text, unit_text, with_draft
from kvquant.sweep.quality import ByModel, read_quality
from kvquant.sweep.survey import check_runnable, survey
from kvquant.tables import terminal_width


@click.command("sweep")
@click.argument("plan", type=click.Path(path_type=Path), metavar="[PLAN]", required=False)
@click.option("-m", "--model", "models", multiple=True, metavar="NAME|FILE", help="A model; may be repeated.")
@click.option(
    "--policy",
    "--layers",
    "--kv-layers",
    "policies",
    multiple=True,
    metavar="POLICY",
    help="A policy; may be repeated.",
)
@click.option("-t", "--threads", "threads", metavar="N,N", help="Numbers of threads, such as 2,4.")
@click.option("--cpus", metavar="LIST,LIST", help="Cores: 4-7,0-7, or all, big, little; + joins: 0+2-3.")
@click.option("--flash-attn", metavar="on,off", help="Flash attention: on, off or both.")
@click.option("-c", "--ctx", "--ctx-size", "ctx", metavar="N,N", help="Contexts, such as 4k,16k,64k.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="How often to measure each cell.")
@out_option
@llama_bin_option
@click.option(
    "--hosts", metavar="HOST:PORT", help="The scheduler of a Dask cluster whose workers are boards."
)
@click.option(
    "--quality",
    multiple=True,
    metavar="DIR",
    help="A folder of validate, eval or divergence, for the quality columns.",
)
@click.option("--published", multiple=True, metavar="CSV", help="Others' results, shown beside yours.")
@click.option("--ram", metavar="SIZE,SIZE", help="Amounts of memory to recommend settings for.")
@click.option(
    "--apply", "wanted", multiple=True, metavar="WHAT", help="Write presets: best, or MODEL=POLICY."
)
@click.option("--preset-file", type=click.Path(path_type=Path), metavar="INI", help="File for the presets.")
@click.option("--unit", type=click.Path(path_type=Path), metavar="FILE", help="Also write a systemd unit.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port of the unit."
)
@click.option("--draft", type=MODEL, metavar="NAME|FILE", help="A draft model for the presets.")
@click.option(
    "--draft-policy", metavar="POLICY", help="Policy of the draft model, one type per side.  [default: f16]"
)
@click.option("--dry-run", is_flag=True, help="List the cells without running them.")
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
    hosts: str | None,
    quality: tuple[str, ...],
    published: tuple[str, ...],
    ram: str | None,
    wanted: tuple[str, ...],
    preset_file: Path | None,
    unit: Path | None,
    port: int,
    draft: Path | None,
    draft_policy: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure every setting that matters on this board, or on many, and recommend one.

    A cell is the patched llama-server, or an endpoint, under one setting. Every finished cell is saved at
    once; run the same command again to resume (docs/sweep.md). Options override the plan's keys. --hosts
    runs the cells on the workers of a Dask cluster (docs/boards.md). Without a plan or a model it shows
    the records in --out and rewrites the reports; with --apply it also writes presets for llama-server in
    router mode.

    \b
    Example:
      kvquant sweep plan.toml --out runs/board
      kvquant sweep --model smollm2-135m --policy f16 --policy q8_0 --threads 1,2 --ctx 2k --out runs/quick
      kvquant sweep --hosts scheduler:8786 plan.toml --out runs/boards
      kvquant sweep --out runs/board --apply best --preset-file models.ini --unit llama.service
    """
    _check_apply(wanted, preset_file, unit, draft, draft_policy)
    given: dict[str, Any] = {
        "models": models,
        "policies": policies,
        "threads": counts(threads, "--threads") if threads else (),
        "cpus": listed(cpus) if cpus else (),
        "flash_attn": _flash(flash_attn),
        "ctx": listed(ctx) if ctx else (),
        "rounds": rounds,
        "quality": quality,
        "published": published,
        "ram": listed(ram) if ram else (),
    }
    changes = {name: value for name, value in given.items() if value}
    if plan is None and not models:
        result = _recorded(out, changes)
    else:
        base = SweepPlan() if plan is None else read_plan(plan)
        the_plan = check_plan(replace(base, **changes), "options" if plan is None else str(plan))
        if dry_run:
            click.echo(plan_text(the_plan, out))
            return
        result = _run(the_plan, out, hosts, llama_bin)
    write_results(out, result)
    write_atomic(out / "sweep.html", sweep_page(result))
    if preset_file is not None:
        of_draft = None if draft is None else draft_of(draft, draft_policy or PLAIN_TYPE)
        presets = with_draft([preset_of(row, result.boards) for row in choose(result, wanted)], of_draft)
        write_atomic(preset_file, preset_text(presets))
        click.echo(f"kvquant: wrote {preset_file}: {', '.join(preset.name for preset in presets)}", err=True)
        if unit is not None:
            write_atomic(unit, unit_text(programs_folder(llama_bin), preset_file, presets, port))
            click.echo(f"kvquant: wrote {unit}", err=True)
    click.echo(to_json(result) if as_json else sweep_text(result, terminal_width()))


def _check_apply(
    wanted: tuple[str, ...],
    preset_file: Path | None,
    unit: Path | None,
    draft: Path | None,
    policy: str | None,
) -> None:
    """Refuse options that only mean something together."""
    if bool(wanted) != (preset_file is not None):
        raise UsageError("--apply WHAT and --preset-file INI go together")
    if preset_file is None and (unit is not None or draft is not None):
        raise UsageError("--unit and --draft belong to --apply WHAT --preset-file INI")
    if policy is not None and draft is None:
        raise UsageError("--draft-policy needs --draft MODEL")


def _flash(text: str | None) -> tuple[str, ...]:
    entries = listed(text) if text else ()
    if not set(entries) <= {"on", "off"}:
        raise UsageError(f"--flash-attn {text!r}: write on, off or on,off")
    return entries


def _recorded(out: Path, changes: dict[str, Any]) -> SweepResult:
    """What a folder holds, with other things beside it where that is asked for."""
    beside = {"quality", "published", "ram"}
    if not (out / JOURNAL).exists() or set(changes) - beside:
        raise UsageError("give a plan, or a model with --model; see kvquant sweep --help")
    journal = read_journal(out)
    last = journal.starts[-1]
    journal.starts[-1] = replace(last, plan=replace(last.plan, **changes))
    return decide(journal, *_beside(journal.starts[-1].plan))


def _run(plan: SweepPlan, out: Path, hosts: str | None, llama_bin: Path | None) -> SweepResult:
    """Run what is left, and say how it goes."""
    known, published = _beside(plan)
    progress = _Progress()
    with _runner(plan, hosts, llama_bin, progress) as runner:
        for line in (f"{board.name}: {what}" for board in runner.boards for what in board.warnings):
            click.echo(f"kvquant: warning: {line}", err=True)
        with open_journal(
            out, start_of(plan, runner.boards, command_line("kvquant", sys.argv[1:]))
        ) as writer:
            progress.plan(len(left_of(plan, runner.boards, writer.journal)))
            try:
                return decide(sweep(plan, runner, writer, progress.record), known, published)
            finally:
                progress.end()


@contextmanager
def _runner(
    plan: SweepPlan, hosts: str | None, llama_bin: Path | None, progress: _Progress
) -> Iterator[Runner]:
    """This machine, or the boards of a cluster, each of which finds its own programs."""
    if hosts is None:
        host = survey(plan, programs_folder(llama_bin) if plan.models else None)
        check_runnable(plan, host)
        yield Here(plan, host, progress.begin)
        return
    from kvquant.sweep.cluster import Cluster  # only here: Dask takes its time to load

    programs = partial(programs_folder, llama_bin)
    with Cluster(hosts, plan, programs, progress.begin, progress.lost) as cluster:
        yield cluster


def _beside(plan: SweepPlan) -> tuple[ByModel, tuple[DecisionRow, ...]]:
    """What is read before anything runs: quality and published tables."""
    known = read_quality(map(Path, plan.quality))
    return known, tuple(row for path in plan.published for row in read_published(Path(path)))


class _Progress:
    """Which cell runs and the time left; what goes wrong at once."""

    def __init__(self) -> None:
        self._left = Countdown(0)
        self._status = StatusLine()

    def plan(self, n_left: int) -> None:
        """So many cells are left."""
        self._left = Countdown(n_left)

    def begin(self, task: Task) -> None:
        """Show what begins."""
        self._status.show(self._left.line(task.key))

    def record(self, found: Record) -> None:
        """Count it, and say what came to nothing."""
        self._left.n_done += 1
        if found.ending not in (Ending.DONE, Ending.REFUSED):
            self._status.say(f"{found.key}: {found.ending}: {found.detail}")

    def lost(self, board: str, what: str) -> None:
        """Say that a board has died."""
        self._status.say(f"board {board} has left; {what}")

    def end(self) -> None:
        """Clear the line."""
        self._status.clear()
