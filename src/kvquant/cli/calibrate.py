"""`kvquant calibrate`: fit an exact change of K to a model, so that quantizing its keys costs less."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal

import click

from kvquant.cli.options import (
    TEXT,
    ctx_option,
    json_option,
    llama_bin_option,
    model_option,
    policy_option,
    programs_folder,
    threads_option,
)
from kvquant.cli.progress import counted
from kvquant.documents import to_json
from kvquant.errors import CheckFailed, UsageError
from kvquant.evals.calibration.plan import CalibrationPlan
from kvquant.evals.calibration.run import calibrate as run_calibration
from kvquant.evals.divergence_run import check_programs
from kvquant.evals.validation.plan import planned_policy
from kvquant.llama.moments import check_programs as check_moments_program
from kvquant.memory import ContextOptions
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import open_model
from kvquant.report.calibration import calibration_text, verdict, write_figure
from kvquant.results.calibration import CalibrationResult
from kvquant.results.provenance import command_line
from kvquant.tables import terminal_width
from kvquant.transform import KINDS, Kind

DEFAULT_POLICY = "*:k=q4_0/v=f16"
LEAST_TOKENS = 16384
"""To fit on; a kind of few tokens does not carry over."""

CHOOSING_TOKENS = 4096


@click.command()
@model_option(required=True, help="The model, a GGUF file.")
@click.option(
    "--text", required=True, type=TEXT, metavar="NAME|FILE", help="A UTF-8 text like those you will serve."
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file to write, a GGUF.",
)
@click.option(
    "--kind",
    type=click.Choice([*KINDS, "auto"]),
    default="auto",
    show_default=True,
    help="The kind for every layer; auto chooses for groups of layers, and may leave some alone.",
)
@click.option("--no-centre", is_flag=True, help="Do not centre K.")
@ctx_option("The longest context you will serve.", least=64, default="4096", show_default=True)
@policy_option(
    "The policy to judge kinds with: give the one you will serve.", default=DEFAULT_POLICY, show_default=True
)
@click.option(
    "--tokens",
    type=click.IntRange(min=64),
    metavar="N",
    help=f"Tokens to fit on.  [default: 4 chunks of --ctx, at least {LEAST_TOKENS}]",
)
@click.option(
    "--chunks",
    type=click.IntRange(min=1),
    metavar="N",
    help="Chunks of --ctx tokens to choose by; twice as many to judge.  "
    f"[default: {CHOOSING_TOKENS} tokens, at least 1]",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    metavar="N",
    help="How often auto halves the layers; 0 treats all layers alike.",
)
@click.option("--anyway", is_flag=True, help="Write the file even if it does not help (exit code 3).")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the measurements there.  [default: FILE.work, removed at the end]",
)
@llama_bin_option
@threads_option("Threads of the programs.")
@json_option
@click.option(
    "--figure", type=click.Path(path_type=Path), metavar="FILE", help="Plot the gains, as .png or .svg."
)
def calibrate(
    model: Path,
    text: Path,
    output: Path,
    kind: Kind | Literal["auto"],
    no_centre: bool,
    ctx: int,
    policy: str,
    tokens: int | None,
    chunks: int | None,
    rounds: int,
    anyway: bool,
    work: Path | None,
    llama_bin: Path | None,
    threads: int | None,
    as_json: bool,
    figure: Path | None,
) -> None:
    """Fit an exact change of K that makes quantizing it cheaper, for --transform FILE (docs/transform.md).

    Runs one part of the text through the model, in chunks up to --ctx deep, and sums the moments of keys
    and queries. Picks kinds by measured KL divergence on a second part and judges the result on a third,
    at the same depth. If the held-out divergence is not clearly smaller than without a transform, it
    writes nothing and exits with 3. Run the same command again to resume.

    \b
    Example:
      kvquant calibrate --model model.gguf --text prose:calibration -o model.kvt.gguf
      kvquant calibrate --model model.gguf --text chats.txt --ctx 16k --policy q4_0 -o model.kvt.gguf
      kvquant llama serve --model model.gguf --policy q4_0 --transform model.kvt.gguf -c 4096
    """
    _check_outputs(output, figure)
    programs = programs_folder(llama_bin)
    check_programs(programs)
    check_moments_program(programs)
    opened = open_model(model)
    opened.require_loadable()
    shape = shape_of(opened)
    plan = CalibrationPlan(
        programs=programs,
        model=opened,
        shape=shape,
        text=text,
        n_ctx=ctx,
        n_fit=tokens or max(4 * ctx, LEAST_TOKENS),
        n_chunks=chunks or max(1, CHOOSING_TOKENS // ctx),
        policy=planned_policy(policy, shape, ContextOptions(ctx, 1)).text,
        kind=kind,
        centred=not no_centre,
        n_rounds=rounds,
        n_threads=threads,
    )
    folder = work or output.with_name(f"{output.name}.work")
    result = run_calibration(
        plan, output, folder, command_line("kvquant", sys.argv[1:]), counted, anyway=anyway
    )
    click.echo(to_json(result) if as_json else calibration_text(result, terminal_width()))
    if figure is not None:
        write_figure(result, figure)
        click.echo(f"kvquant: wrote {figure}", err=True)
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    _raise_for(result, output)


def _check_outputs(output: Path, figure: Path | None) -> None:
    """Refuse before the work what would fail after it."""
    if figure is not None and figure.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"--figure {figure}: give a file name that ends in .png or .svg")
    for option, path in (("--output", output), ("--figure", figure)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}; make it first")


def _raise_for(result: CalibrationResult, output: Path) -> None:
    judged = result.judgement
    deeper = [depth for depth in judged.by_depth if depth.with_transform > depth.without]
    if judged.better and deeper:
        places = ", ".join(f"{depth.first}-{depth.last}" for depth in deeper)
        click.echo(f"kvquant: warning: at positions {places} the transform is harmful", err=True)
    if not judged.better:
        written = f"{output} was written all the same" if result.transform else f"{output} was not written"
        raise CheckFailed(f"{verdict(result)}; {written}")
