"""`kvquant validate`: the same model, the same tasks, every policy against a baseline."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from kvquant.cli.options import (
    VARIED_POLICY,
    ctx_option,
    json_option,
    llama_bin_option,
    model_option,
    out_option,
    policy_option,
    programs_folder,
    runnable_shape,
    say_warnings,
    seed_option,
    shape_beside_option,
    threads_option,
    timeout_option,
)
from kvquant.cli.progress import StatusLine
from kvquant.cli.transforms import checked_transform, transform_option
from kvquant.documents import to_json
from kvquant.errors import CheckFailed, KVQuantError
from kvquant.evals.suite import load_suite
from kvquant.evals.validation.engine import validate
from kvquant.evals.validation.estimate import Countdown, plan_text
from kvquant.evals.validation.plan import Plan, Settings, Step, make_plan
from kvquant.evals.validation.records import Folder
from kvquant.evals.variations import UNTRANSFORMED
from kvquant.model.gguf_file import open_model
from kvquant.report.validation_text import validation_text
from kvquant.results.comparison import Verdict
from kvquant.results.provenance import command_line
from kvquant.results.validation import ValidationResult
from kvquant.shipped import reference_model
from kvquant.tables import terminal_width


@click.command("validate")
@model_option(help="A GGUF file.  [default: the shipped reference model]")
@shape_beside_option
@policy_option(
    "A policy or preset; repeat for more. The baseline is f16, else the first.",
    name="policies",
    type=VARIED_POLICY,
    multiple=True,
    required=True,
)
@transform_option(
    f"Change K exactly before it is stored (kvquant calibrate), under every policy but f16; @{UNTRANSFORMED} "
    "behind a policy leaves it out."
)
@click.option("--suite", default="standard", show_default=True, metavar="NAME|FILE", help="What to measure.")
@out_option
@llama_bin_option
@click.option(
    "--n", type=click.IntRange(min=1), metavar="N", help="Samples per category.  [default: the suite's]"
)
@seed_option
@ctx_option("Context of the server.  [default: the suite's]")
@threads_option("Threads of llama.cpp's programs.")
@timeout_option
@click.option("--dry-run", is_flag=True, help="Show what would be measured and how long it takes.")
@json_option
def validate_policies(
    model: Path | None,
    shape: str | None,
    policies: tuple[str, ...],
    transform: Path | None,
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
    """Judge each policy against a baseline: safe, costs so much, or broken.

    Starts the patched llama-server once per policy with the same settings and asks the same questions;
    measures divergence, speed and memory as the suite says (docs/evaluation.md). Every finished piece is
    saved at once: run the same command again to resume. Exits with 3 if a policy is broken, with 1 if one
    failed.

    \b
    Example:
      kvquant validate --policy f16 --policy q8_0 --policy k8v4 --policy q4_0 --out runs/today
      kvquant validate --model model.gguf --policy f16 --policy q8_0 --suite agent --out runs/agent
      kvquant validate --model model.gguf --policy f16 --policy q4_0 --policy q4_0@no-transform \\
          --transform model.kvt.gguf --out runs/calibrated
      kvquant compare runs/today
    """
    the_suite = load_suite(suite)
    settings = Settings.of(the_suite, n, seed, ctx, threads, timeout)
    file = model or reference_model()
    opened = open_model(file)
    known = runnable_shape(opened, shape)
    used = None
    if transform is not None:
        used = checked_transform(transform, opened, known, settings.n_ctx, digest=True)
    plan = make_plan(programs_folder(llama_bin), opened, known, the_suite, policies, settings, used)
    for policy in plan.policies:
        if known is not None and policy.resolved is not None:
            say_warnings(policy.resolved, known)
    folder = Folder(out)
    if dry_run:
        click.echo(plan_text(plan, folder))
        return
    progress = _Progress(plan)
    try:
        result = validate(plan, folder, command_line("kvquant", sys.argv[1:]), progress)
    finally:
        progress.end()
    click.echo(to_json(result) if as_json else validation_text(result, terminal_width()))
    _raise_for(result)


def _raise_for(result: ValidationResult) -> None:
    """Raise for what the exit code must say: broken first, as more measuring will not change that."""
    broken, failed = (
        ", ".join(policy.label for policy in result.policies if policy.verdict is verdict)
        for verdict in (Verdict.BROKEN, Verdict.FAILED)
    )
    if broken:
        raise CheckFailed(f"broken: {broken}")
    if failed:
        raise KVQuantError(f"failed: {failed}; run the same command again to retry")


class _Progress:
    """What runs and the time left; failures at once."""

    def __init__(self, plan: Plan) -> None:
        self._labels = {policy.text: policy.label for policy in plan.policies}
        self._left = Countdown()
        self._status = StatusLine()

    def plan(self, found: Sequence[Step]) -> None:
        """Take over all steps."""
        self._left.plan(found)

    def begin(self, policy: str, part: str) -> None:
        """Show what begins."""
        self._left.begin()
        self._show(policy, part, "")

    def advance(self, policy: str, part: str, note: str) -> None:
        """Show a unit."""
        self._left.advance(policy, part)
        self._show(policy, part, note)

    def finish(self, policy: str, part: str) -> None:
        """Count a part."""
        self._left.finish(policy, part)

    def fail(self, policy: str, part: str, what: str) -> None:
        """Say it at once: the run goes on."""
        self._status.say(f"{self._labels[policy]}: {part} failed: {what}")

    def end(self) -> None:
        """Clear the line."""
        self._status.clear()

    def _show(self, policy: str, part: str, note: str) -> None:
        self._status.show(f"{self._labels[policy]}: {self._left.line(policy, part, note)}")
