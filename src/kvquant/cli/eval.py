"""`kvquant eval`: run a suite of tasks against any OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from kvquant.cli.options import json_option, out_option, seed_option, timeout_option
from kvquant.evals.endpoint import Endpoint
from kvquant.evals.outcome import Outcome
from kvquant.evals.records import FILE_NAME, Run, SampleRecord, open_log, read_run
from kvquant.evals.run import run_info, run_samples
from kvquant.evals.suite import Sample, Suite, load_suite, samples
from kvquant.evals.summary import Summary, summarise


@click.command("eval")
@click.option("--base-url", required=True, metavar="URL", help="Up to the version: http://127.0.0.1:8080/v1.")
@click.option("--suite", default="agent", show_default=True, metavar="NAME|FILE", help="Which tasks.")
@out_option
@click.option("--model", metavar="NAME", help="As the endpoint calls it.  [default: the only one it serves]")
@click.option("--n", type=int, metavar="N", help="Samples per category.  [default: the suite's]")
@seed_option
@timeout_option
@click.option("--dry-run", is_flag=True, help="Say what would be asked and how long it may take.")
@json_option
def evaluate(
    base_url: str,
    suite: str,
    out: Path,
    model: str | None,
    n: int | None,
    seed: int,
    timeout: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Ask an OpenAI-compatible endpoint a suite of tasks and grade the answers.

    Every finished sample is on the disk at once. The same command again goes on where it stopped, however it
    stopped, and repeats no finished sample; with a larger --n it adds to them. Suites and outcomes:
    docs/evaluation.md.

    \b
    Example:
      kvquant eval --base-url http://127.0.0.1:8080/v1 --suite agent --out runs/f16
      kvquant eval --base-url http://127.0.0.1:8080/v1 --suite recall --n 200 --out runs/recall-q4_0
    """
    the_suite = load_suite(suite)
    n_samples = the_suite.n if n is None else n
    chosen = samples(the_suite, n_samples, seed)
    endpoint = Endpoint(base_url, timeout)
    if dry_run:
        click.echo(_plan(the_suite, chosen, out, timeout))
        return
    argv = ["kvquant", *sys.argv[1:]]
    info = run_info(the_suite, n_samples, seed, endpoint.choose_model(model), endpoint.base_url, argv)
    with open_log(out, info) as log:
        progress = _Progress(len(chosen), sum(sample.id in log.finished for sample in chosen))
        try:
            run_samples(chosen, endpoint, info, the_suite.max_tokens, log, progress.show)
        finally:
            progress.end()
    run = read_run(out)
    if as_json:
        summaries = [summary.document() for summary in summarise(run)]
        click.echo(json.dumps({"run": asdict(run.info), "summary": summaries}, indent=1))
    else:
        click.echo(_header(run))
        click.echo(table(summarise(run)))


def table(summaries: list[Summary]) -> str:
    """One line per category: rate, interval, and what the answers that were not right were."""
    lines = [f"{'category':<16} {'n':>5} {'right':>6} {'rate':>7}  {'95 % interval':<16} otherwise"]
    for summary in summaries:
        rate = "-" if summary.rate is None else f"{summary.rate:.1%}"
        interval = summary.interval
        shown = "-" if interval is None else f"{interval.low:.1%} to {interval.high:.1%}"
        others = ", ".join(
            f"{count} {outcome}"
            for outcome in Outcome
            if outcome is not Outcome.RIGHT and (count := summary.outcomes.get(outcome, 0))
        )
        row = f"{summary.category:<16} {summary.n:>5} {summary.n_right:>6} {rate:>7}  {shown:<16} {others}"
        lines.append(row.rstrip())
    return "\n".join(lines)


def _header(run: Run) -> str:
    info = run.info
    return (
        f"{info.model} at {info.base_url}, suite {info.suite}, seed {info.seed}, {len(run.samples)} samples"
    )


def _plan(suite: Suite, chosen: list[Sample], out: Path, timeout: float) -> str:
    done = _finished(out)
    left = [sample for sample in chosen if sample.id not in done]
    lines = [f"suite {suite.name}: {suite.about}"]
    lines += [
        f"  {name}: {count} samples" for name, count in Counter(sample.test.name for sample in chosen).items()
    ]
    lines.append(f"{len(chosen)} samples, {len(chosen) - len(left)} of them finished in {out}")
    seconds = [record.wall_seconds for record in done.values()]
    if seconds:
        mean = sum(seconds) / len(seconds)
        lines.append(f"about {_clock(len(left) * mean)} left, at {mean:.1f} s a sample as so far")
    lines.append(f"at most {_clock(len(left) * timeout)} at {timeout:g} s a sample")
    return "\n".join(lines)


def _finished(out: Path) -> dict[str, SampleRecord]:
    if not (out / FILE_NAME).exists():
        return {}
    return {record.id: record for record in read_run(out).samples}


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class _Progress:
    """One line on stderr, only on a terminal."""

    def __init__(self, n: int, n_done: int) -> None:
        self._n, self._n_done, self._n_right = n, n_done, 0
        self._n_before, self._start = n_done, time.monotonic()
        self._shown = sys.stderr.isatty()

    def show(self, record: SampleRecord) -> None:
        """Count a sample that was just finished."""
        self._n_done += 1
        self._n_right += record.outcome is Outcome.RIGHT
        if self._shown:
            asked = self._n_done - self._n_before
            left = (time.monotonic() - self._start) / asked * (self._n - self._n_done)
            line = f"{self._n_done}/{self._n} samples, {self._n_right} of {asked} right, {_clock(left)} left"
            click.echo(f"\r\x1b[K{line}", err=True, nl=False)

    def end(self) -> None:
        """Leave the line."""
        if self._shown and self._n_done > self._n_before:
            click.echo("", err=True)
