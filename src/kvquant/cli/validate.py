"""`kvquant validate`: the same model, the same tasks, every policy against a baseline."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from kvquant.cli.options import (
    ctx_option,
    json_option,
    llama_bin_option,
    model_option,
    out_option,
    policy_option,
    programs_folder,
    say_warnings,
    seed_option,
    threads_option,
    timeout_option,
)
from kvquant.cli.validation_text import validation_text
from kvquant.errors import CheckFailed, KVQuantError
from kvquant.evals.location import eval_folder
from kvquant.evals.suite import load_suite
from kvquant.evals.validation.engine import validate
from kvquant.evals.validation.estimate import recorded, seconds_left, tried
from kvquant.evals.validation.folder import Folder
from kvquant.evals.validation.journal import read_journal
from kvquant.evals.validation.plan import Plan, Settings, make_plan
from kvquant.evals.validation.records import Records, read_records
from kvquant.evals.validation.result import PolicyResult, ValidationResult, Verdict
from kvquant.evals.validation.steps import Step, done_in, steps

MODEL = Path("reference-model/kvquant-reference-f16.gguf")
"""The default, in the folder eval/."""


@click.command("validate")
@model_option(help="A GGUF file.  [default: the shipped reference model]")
@policy_option(
    "A policy or preset; give it once for each. The baseline is f16, else the first.",
    name="policies",
    multiple=True,
    required=True,
)
@click.option("--suite", default="standard", show_default=True, metavar="NAME|FILE", help="What is measured.")
@out_option
@llama_bin_option
@click.option(
    "--n", type=click.IntRange(min=1), metavar="N", help="Samples per category.  [default: the suite's]"
)
@seed_option
@ctx_option("Context of the server.  [default: the suite's]")
@threads_option("Threads of llama.cpp's programs.")
@timeout_option
@click.option("--dry-run", is_flag=True, help="Say what would be measured and how long it takes.")
@json_option
def validate_policies(
    model: Path | None,
    policies: tuple[str, ...],
    suite: str,
    out: Path,
    llama_bin: Path | None,
    n: int | None,
    seed: int,
    ctx: int | None,
    threads: int | None,
    timeout: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Say of each policy, against a baseline: safe, costs so much, or broken.

    For every policy the patched llama-server is started with the same settings and asked the same questions;
    divergence, speed and memory are measured as the suite says (docs/evaluation.md). Every finished piece is
    on the disk at once: the same command again goes on where it stopped. Exit code 3 when a policy is broken,
    1 when one failed.

    \b
    Example:
      kvquant validate --policy f16 --policy q8_0 --policy q4_0 --policy hybrid --out runs/today
      kvquant validate --model model.gguf --policy f16 --policy q8_0 --suite agent --out runs/agent
      kvquant compare runs/today
    """
    the_suite = load_suite(suite)
    settings = Settings(
        n=0 if not the_suite.tests else n or the_suite.n,
        seed=seed,
        n_ctx=ctx or the_suite.parts.n_ctx,
        n_threads=threads,
        timeout_seconds=timeout,
    )
    file = model or eval_folder() / MODEL
    plan = make_plan(programs_folder(llama_bin), file, the_suite, policies, settings)
    for policy in plan.policies:
        say_warnings(policy.resolved)
    folder = Folder(out)
    if dry_run:
        click.echo(_plan_text(plan, folder))
        return
    progress = _Progress(plan)
    try:
        result = validate(plan, folder, ["kvquant", *sys.argv[1:]], progress)
    finally:
        progress.end()
    click.echo(json.dumps(result.document(), indent=1) if as_json else validation_text(result))
    _raise_for(result)


def _raise_for(result: ValidationResult) -> None:
    """Raise for what the exit code must say: broken first, as more measuring will not change that."""
    broken, failed = (
        [policy for policy in result.policies if policy.verdict is verdict]
        for verdict in (Verdict.BROKEN, Verdict.FAILED)
    )
    if broken:
        raise CheckFailed(f"broken: {_labels(broken)}")
    if failed:
        raise KVQuantError(f"failed: {_labels(failed)}; run the same command again to try what is missing")


def _labels(policies: Sequence[PolicyResult]) -> str:
    return ", ".join(policy.label for policy in policies)


def _plan_text(plan: Plan, folder: Folder) -> str:
    records = _records(folder)
    found = steps(plan, done_in(records))
    suite = plan.suite
    lines = [f"suite {suite.name}: {suite.about}", f"model {plan.model_file.name}, {plan.model}"]
    for policy in plan.policies:
        name = "baseline" if policy == plan.baseline else "policy"
        lines.append(f"{name} {policy.label} ({policy.text})")
        lines += [
            f"  {step.part}: {step.n}" + (f", {step.n_done} finished" if step.n_done else "")
            for step in found
            if step.policy == policy.text
        ]
    per_unit = tried(plan) if records is None else recorded(records)
    seconds, complete = seconds_left(found, per_unit)
    how = "from a short try with the baseline" if records is None else f"from the records in {folder.root}"
    lines.append(f"{'about' if complete else 'at least'} {_clock(seconds)} left, {how}")
    return "\n".join(lines)


def _records(folder: Folder) -> Records | None:
    return None if read_journal(folder) is None else read_records(folder)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class _Progress:
    """One line on stderr, only on a terminal; failures always."""

    def __init__(self, plan: Plan) -> None:
        self._labels = {policy.text: policy.label for policy in plan.policies}
        self._left: dict[tuple[str, str], Step] = {}
        self._begun = time.monotonic()
        self._taken: dict[str, list[float]] = {}
        self._shown = sys.stderr.isatty()

    def plan(self, found: Sequence[Step]) -> None:
        """Take over all steps."""
        self._left = {(step.policy, step.part): step for step in found}

    def begin(self, policy: str, part: str) -> None:
        """Show what begins."""
        self._begun = time.monotonic()
        self._show(policy, part, "")

    def advance(self, policy: str, part: str, note: str) -> None:
        """Count a unit."""
        now = time.monotonic()
        self._taken.setdefault(part, []).append(now - self._begun)
        self._begun = now
        step = self._left[policy, part]
        self._left[policy, part] = Step(policy, part, step.n, min(step.n, step.n_done + 1))
        self._show(policy, part, note)

    def finish(self, policy: str, part: str) -> None:
        """Count a part, and its time where its units were not counted one by one."""
        step = self._left[policy, part]
        if step.n_left:
            self._taken.setdefault(part, []).append((time.monotonic() - self._begun) / step.n_left)
        self._left[policy, part] = Step(policy, part, step.n, step.n)

    def fail(self, policy: str, part: str, what: str) -> None:
        """Say it at once: the run goes on."""
        self.end()
        click.echo(f"kvquant: {self._labels[policy]}: {part} failed: {what}", err=True)

    def end(self) -> None:
        """Clear the line."""
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)

    def _show(self, policy: str, part: str, note: str) -> None:
        if not self._shown:
            return
        step = self._left[policy, part]
        per_unit = {name: sum(taken) / len(taken) for name, taken in self._taken.items()}
        seconds, complete = seconds_left(list(self._left.values()), per_unit)
        left = f"{'' if complete else 'more than '}{_clock(seconds)} left"
        counted = f"{self._labels[policy]}: {part} {step.n_done}/{step.n} {note}".rstrip()
        click.echo(f"\r\x1b[K{counted}, {left}", err=True, nl=False)
