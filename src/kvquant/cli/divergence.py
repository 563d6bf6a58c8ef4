"""`kvquant divergence`: how far cache policies move a model's predictions on a text."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import click

from kvquant.cli.options import (
    TEXT,
    VARIED_POLICY,
    ctx_option,
    jobs_option,
    json_option,
    llama_bin_option,
    model_option,
    policy_option,
    programs_folder,
    rotation_line,
    threads_option,
)
from kvquant.cli.progress import counted
from kvquant.cli.transforms import checked_transform, transform_option
from kvquant.documents import to_json
from kvquant.errors import LlamaError, UsageError
from kvquant.evals.divergence import FeedPath
from kvquant.evals.divergence_run import (
    DivergencePlan,
    check_programs,
    plan_policies,
    run_divergence,
)
from kvquant.evals.variations import UNROTATED, UNTRANSFORMED
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import open_model
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy
from kvquant.report.transform import transform_line
from kvquant.results.divergence import DivergenceResult, PolicyDivergence
from kvquant.results.provenance import command_line
from kvquant.units import format_n_bytes

DEFAULT_N_CTX = 512
UNKNOWN = "-"


@click.command()
@model_option(required=True, help="The model, a GGUF file.")
@click.option(
    "--text",
    "texts",
    required=True,
    multiple=True,
    type=TEXT,
    metavar="NAME|FILE",
    help="A UTF-8 text (kvquant texts); repeat for more documents.",
)
@policy_option(
    f"A policy or preset, also with @{UNROTATED} or @{UNTRANSFORMED} behind it; give it once for each.",
    name="policies",
    type=VARIED_POLICY,
    multiple=True,
    required=True,
)
@transform_option(
    "Change K exactly before it is stored (kvquant calibrate), under every policy but f16; give it again to "
    "compare.",
    name="transforms",
    multiple=True,
)
@ctx_option(
    "Tokens of a chunk; the second half of each is scored.",
    least=2,
    default=str(DEFAULT_N_CTX),
    show_default=True,
)
@click.option("--tokens", type=click.IntRange(min=1), metavar="N", help="Score at most N.  [default: all]")
@click.option(
    "--path",
    "path",
    type=click.Choice(get_args(FeedPath)),
    default="prefill",
    show_default=True,
    help="Feed scored tokens in batches, or one by one as in generation, which takes far longer.",
)
@click.option("--no-rotation", is_flag=True, help="Turn llama.cpp's rotation off for every policy.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep every token there; run the same command again to resume, or with more policies to add them.",
)
@llama_bin_option
@threads_option("Threads of the program.")
@jobs_option
@json_option
def divergence(
    model: Path,
    texts: tuple[Path, ...],
    policies: tuple[str, ...],
    transforms: tuple[Path, ...],
    ctx: int,
    tokens: int | None,
    path: FeedPath,
    no_rotation: bool,
    out: Path | None,
    llama_bin: Path | None,
    threads: int | None,
    jobs: int,
    as_json: bool,
) -> None:
    """How far each policy moves a model's predictions: KL divergence from a float16 cache, token by token.

    Loads the weights once and runs the baseline once for all policies; memory does not grow with the
    text. The floor is the float16 cache against itself with tokens fed the other way: a smaller
    divergence is noise.

    \b
    Example:
      kvquant divergence --model model.gguf --text book.txt --policy q8_0 --policy k8v4 --policy q4_0
      kvquant divergence --model model.gguf --text book.txt --policy q4_0 --policy q4_0@no-rotation
      kvquant divergence --model model.gguf --text book.txt --policy q4_0 --policy q4_0@no-transform \\
          --transform model.kvt.gguf
      kvquant divergence --model model.gguf --text book.txt --policy k8v4 --ctx 4096 --out runs/deep --json
    """
    programs = programs_folder(llama_bin)
    check_programs(programs)
    opened = open_model(model)
    opened.require_loadable()
    shape = shape_of(opened)
    _check_inputs(shape, model, texts, ctx)
    plan = DivergencePlan(
        programs=programs,
        model=opened,
        shape=shape,
        texts=texts,
        path=path,
        n_ctx=ctx,
        n_tokens=tokens,
        policies=plan_policies(
            policies,
            shape,
            ctx,
            path,
            rotation=not no_rotation,
            transforms=[checked_transform(file, opened, shape, ctx, digest=True) for file in transforms],
        ),
        n_threads=threads,
        n_jobs=jobs,
    )
    rotated = [planned.setup.policy for planned in plan.policies if planned.setup.rotation]
    resolved = [parse_policy(text).resolve(shape) for text in rotated]
    for line in dict.fromkeys(line for one in resolved for line in rotation_line(shape, one)):
        click.echo(f"kvquant: warning: {line}", err=True)
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvquant-")))
        progress = stack.enter_context(counted("chunks"))
        result = run_divergence(plan, folder, command_line("kvquant", sys.argv[1:]), progress)
    click.echo(to_json(result) if as_json else divergence_text(result))
    failed = [policy for policy in result.policies if policy.failure is not None]
    for policy in failed:
        click.echo(f"kvquant: {policy.label}: failed: {policy.failure}", err=True)
    if failed:
        raise LlamaError(
            f"{len(failed)} of {len(result.policies)} policies failed; the numbers above are of the others"
        )


def divergence_text(result: DivergenceResult) -> str:
    """Return the table, with the text, the baseline and the floor above it."""
    texts = ", ".join(text.name for text in result.start.texts)
    floor = result.floor
    head = ("policy", "cache", "of f16", "KL", "95 %", "median", "99 %", "same top", "perplexity")
    rows = [head, *(_row(policy) for policy in result.policies)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    table = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    floor_words = UNKNOWN if floor is None else _number(floor.kl_mean)
    transforms = dict.fromkeys(policy.transform for policy in result.policies if policy.transform)
    return "\n".join(
        [
            f"{result.start.model.name} on {texts}: {result.n_tokens} tokens, {result.start.path} path, "
            f"chunks of {result.start.n_ctx}",
            f"KL divergence in nats a token from {result.baseline.removeprefix('*:')}, whose perplexity is "
            f"{_number(result.baseline_perplexity)}; floor {floor_words}",
            *(f"with transform {transform_line(used)}" for used in transforms if used is not None),
            "",
            *table,
        ]
    )


def _row(policy: PolicyDivergence) -> tuple[str, ...]:
    interval = UNKNOWN
    if policy.kl_low is not None and policy.kl_high is not None:
        interval = f"{_number(policy.kl_low)} to {_number(policy.kl_high)}"
    return (
        policy.label,
        format_n_bytes(policy.kv_bytes),
        f"{policy.of_f16:.3f}",
        _number(policy.kl_mean),
        interval,
        _number(policy.kl_median),
        _number(policy.kl_p99),
        UNKNOWN if policy.top1 is None else f"{policy.top1:.1%}",
        _number(policy.perplexity),
    )


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"


def _check_inputs(shape: ModelShape, model: Path, texts: tuple[Path, ...], n_ctx: int) -> None:
    """Refuse before the model is loaded what the program would refuse after it."""
    if shape.n_ctx_train and n_ctx > shape.n_ctx_train:
        raise UsageError(
            f"--ctx {n_ctx}: {model.name} was trained on {shape.n_ctx_train} tokens; give at most as many"
        )
    missing = next((text for text in texts if not text.is_file()), None)
    if missing is not None:
        raise UsageError(f"--text {missing}: no such file; give a UTF-8 text")
