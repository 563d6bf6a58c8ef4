"""`kvquant eval`: run a suite of tasks against any OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import SplitResult

import click

from kvquant.cli.options import json_option, out_option, seed_option, timeout_option
from kvquant.cli.progress import StatusLine
from kvquant.documents import to_json
from kvquant.errors import EndpointError, UsageError
from kvquant.evals.endpoint import ApiKey, Endpoint, is_loopback, plain_url
from kvquant.evals.outcome import Outcome
from kvquant.evals.patience import Patience
from kvquant.evals.records import FILE_NAME, Run, SampleRecord, open_log, read_run
from kvquant.evals.run import run_info, run_samples
from kvquant.evals.statistics import minimum_detectable_effect
from kvquant.evals.suite import Sample, Suite, load_suite, samples
from kvquant.evals.summary import summarise
from kvquant.report.comparison import summary_table
from kvquant.results.provenance import command_line
from kvquant.tables import clock, terminal_width, text

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"


@click.command("eval")
@click.option("--base-url", required=True, metavar="URL", help="Up to the version: http://127.0.0.1:8080/v1.")
@click.option("--suite", default="agent", show_default=True, metavar="NAME|FILE", help="Which tasks.")
@out_option
@click.option("--model", metavar="NAME", help="As the endpoint calls it.  [default: the only one it serves]")
@click.option("--n", type=int, metavar="N", help="Samples per category.  [default: the suite's]")
@seed_option
@timeout_option
@click.option(
    "--retry-for",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait in all, in growing pauses, for an endpoint that fails on a sample, before the "
    "sample is left unanswered for the next run; a model that is still loading has 15 minutes. 0: ask once.",
)
@click.option(
    "--api-key-env",
    metavar="VARIABLE",
    help="The environment variable that holds the endpoint's key.  [default: OPENAI_API_KEY, if it is set "
    "and the URL is https or on this machine]",
)
@click.option("--dry-run", is_flag=True, help="Show what would be asked and how long it may take.")
@json_option
def evaluate(
    base_url: str,
    suite: str,
    out: Path,
    model: str | None,
    n: int | None,
    seed: int,
    timeout: float,
    retry_for: float,
    api_key_env: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Ask an OpenAI-compatible endpoint a suite of tasks and grade the answers.

    Every answer is saved at once. Run the same command again to resume after any interruption: it repeats
    no answer, asks again where the endpoint failed, and adds samples if --n is larger. Exits with 1 if
    samples stay unanswered. Suites and outcomes: docs/evaluation.md.

    \b
    Example:
      kvquant eval --base-url http://127.0.0.1:8080/v1 --suite agent --out runs/f16
      kvquant eval --base-url http://127.0.0.1:8080/v1 --suite recall --n 200 --out runs/recall-q4_0
    """
    the_suite = load_suite(suite)
    n_samples = the_suite.n if n is None else n
    chosen = samples(the_suite, n_samples, seed)
    endpoint = Endpoint(base_url, timeout, _key(plain_url(base_url), api_key_env))
    if dry_run:
        click.echo(_plan(the_suite, chosen, out, timeout))
        return
    argv = command_line("kvquant", sys.argv[1:])
    progress = _Progress(len(chosen))
    patience = Patience(retry_for, progress.wait)
    try:
        chosen_model = patience.ask(lambda: endpoint.choose_model(model))
        info = run_info(the_suite, n_samples, seed, chosen_model, endpoint.base_url, argv)
        with open_log(out, info) as log:
            progress.begin(sum(sample.id in log.finished for sample in chosen))
            run_samples(chosen, endpoint, info, the_suite.max_tokens, patience, log, progress.show)
    finally:
        progress.end()
    run = read_run(out)
    if as_json:
        click.echo(to_json({"run": run.info, "summary": summarise(run)}))
    else:
        click.echo(_header(run))
        click.echo(text(summary_table(summarise(run)), terminal_width()))
    _advise(run)
    asked = {sample.id for sample in chosen}
    left = [record for record in run.unanswered if record.id in asked]
    if left:
        raise EndpointError(
            f"{len(left)} of {len(chosen)} samples are unanswered, last: {left[-1].detail}; run the same "
            "command again to ask them again"
        )


def _key(url: SplitResult, variable: str | None) -> ApiKey | None:
    """The key for an endpoint. The common variable is not sent in the clear to another machine unasked."""
    if variable is None:
        is_private = url.scheme == "https" or is_loopback(url.hostname or "")
        value = os.environ.get(DEFAULT_KEY_VARIABLE, "").strip() if is_private else ""
        variable = DEFAULT_KEY_VARIABLE
    else:
        value = os.environ.get(variable, "").strip()
        if not value:
            raise UsageError(f"--api-key-env {variable}: that variable is not set; export it first")
    if not (value.isascii() and value.isprintable()):
        raise UsageError(
            f"the key in {variable} has characters that an HTTP header cannot carry; set it again"
        )
    return ApiKey(variable, value) if value else None


def _advise(run: Run) -> None:
    n = sum(record.outcome is Outcome.REASONING_ONLY for record in run.samples)
    n_cut = sum(bool(record.outcome is Outcome.TRUNCATED and record.reasoning) for record in run.samples)
    if n or n_cut:
        click.echo(
            f"{n} answers are reasoning only, and {n_cut} were cut off in or after reasoning: turn thinking "
            "off (llama-server --reasoning off, or enable_thinking false in the chat template), or "
            "give more tokens (max_tokens in the suite)",
            err=True,
        )


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
    for category, count in Counter(sample.test.category for sample in chosen).items():
        rules = suite.rules
        found = minimum_detectable_effect(count, rules.disagreement, rules.alpha, rules.power)
        if found is not None:
            lines.append(f"  {category}: two such runs show a change of {100 * found:.1f} points or more")
    lines.append(f"{len(chosen)} samples, {len(chosen) - len(left)} of them finished in {out}")
    seconds = [record.wall_seconds for record in done.values()]
    if seconds:
        mean = sum(seconds) / len(seconds)
        lines.append(f"about {clock(len(left) * mean)} left, at {mean:.1f} s a sample as so far")
    lines.append(f"at most {clock(len(left) * timeout)} at {timeout:g} s a sample")
    return "\n".join(lines)


def _finished(out: Path) -> dict[str, SampleRecord]:
    if not (out / FILE_NAME).exists():
        return {}
    return {record.id: record for record in read_run(out).samples}


class _Progress:
    """How many samples are done, how many are right, and the time left."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._status = StatusLine()
        self.begin(0)

    def begin(self, n_done: int) -> None:
        """Start to count, after so many samples that were finished before."""
        self._n_done, self._n_before, self._n_right = n_done, n_done, 0
        self._start = time.monotonic()

    def show(self, record: SampleRecord) -> None:
        """Count a sample that was just finished."""
        self._n_done += 1
        self._n_right += record.outcome is Outcome.RIGHT
        asked = self._n_done - self._n_before
        left = (time.monotonic() - self._start) / asked * (self._n - self._n_done)
        self._status.show(
            f"{self._n_done}/{self._n} samples, {self._n_right} of {asked} right, {clock(left)} left"
        )

    def wait(self, seconds: float, why: str) -> None:
        """Say why nothing happens for so long."""
        self._status.show(f"{self._n_done}/{self._n} samples; {why[:60]}; asking again in {seconds:.0f} s")

    def end(self) -> None:
        """Clear the line."""
        self._status.clear()
