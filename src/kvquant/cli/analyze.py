"""`kvquant analyze`: bytes and errors of a policy, layer by layer, beside uniform caches."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from kvquant.analysis import BASELINES, DEFAULT_N_CTX, PROFILES, Analysis, Rotation, Sampling
from kvquant.analysis import analyze as run_analysis
from kvquant.cli.options import (
    PolicyChoice,
    ctx_option,
    json_option,
    policy_options,
    shape_from_options,
    shape_options,
)
from kvquant.cli.progress import counted
from kvquant.cli.transforms import transform_option
from kvquant.errors import UsageError
from kvquant.report.analysis import analysis_text
from kvquant.tables import terminal_width


@click.command()
@policy_options
@shape_options
@click.option("--capture", metavar="FILE", help="K and V of a real run (kvquant capture), or 'reference'.")
@click.option("--profile", type=click.Choice(tuple(PROFILES)), help="Synthetic K and V to use.")
@ctx_option("Tokens to count bytes for.", default=DEFAULT_N_CTX, show_default=True)
@transform_option(
    "Pass the policy's K through an exact change before it is stored (kvquant calibrate); needs --capture."
)
@click.option("--seed", default=0, show_default=True, metavar="S", help="Seed of everything synthetic.")
@click.option(
    "--rotation",
    type=click.Choice(get_args(Rotation)),
    default="both",
    show_default=True,
    help="llama.cpp's Hadamard rotation: as it applies it, not at all, or both side by side.",
)
@click.option("--no-rotation", "rotation", flag_value="off", help="The same as --rotation off.")
@click.option(
    "--against",
    default=",".join(BASELINES),
    metavar="NAMES",
    help="Types and presets to compare with, comma-separated.",
)
@click.option("--tokens", type=int, metavar="N", help="Tokens to draw per layer of a profile.")
@click.option("--queries", type=int, metavar="N", help="Queries per layer.")
@click.option(
    "--heads", type=int, metavar="N", help="KV heads to sample per layer, each with its query heads."
)
@json_option
@click.option("--html", metavar="FILE", help="Also write one self-contained page.")
@click.option("--plot", metavar="FILE", help="Also write the figures, as .png or .svg.")
def analyze(
    policy: PolicyChoice,
    model: Path | None,
    shape: str | None,
    capture: str | None,
    profile: str | None,
    ctx: int,
    transform: Path | None,
    seed: int,
    rotation: Rotation,
    against: str,
    tokens: int | None,
    queries: int | None,
    heads: int | None,
    as_json: bool,
    html: str | None,
    plot: str | None,
) -> None:
    """What a policy costs and saves: bytes, error of K, V and attention, compared with uniform caches.

    Without a model, profile or capture it uses K, V and Q of the 32-layer reference model; a model
    without a capture gets synthetic K and V. Either ranks policies. Whether the model still works is what
    `kvquant validate` measures.

    \b
    Example:
      kvquant analyze --policy 0-10:q8_0,11-31:q4_0
      kvquant analyze --policy k8v4 --profile qwen2.5-7b --html report.html
      kvquant analyze --policy '*:k=q8_0/v=q4_0' --capture kv.npz --json
    """
    _check_outputs(html, plot)
    given_shape = None if model is None and shape is None else shape_from_options(model, shape)
    limits = {"n_tokens": tokens, "n_query": queries, "n_head_kv": heads}
    with counted("layers") as progress:
        analysis = run_analysis(
            policy.policy_text,
            shape=given_shape,
            profile=profile,
            capture=capture,
            n_ctx=ctx,
            default_k=policy.k_default,
            default_v=policy.v_default,
            baselines=[name for name in against.split(",") if name],
            rotation=rotation,
            seed=seed,
            sampling=Sampling(**{name: limit for name, limit in limits.items() if limit is not None}),
            transform=transform,
            progress=progress,
        )
    for warning in analysis.warnings:
        click.echo(f"kvquant: warning: {warning}", err=True)
    click.echo(analysis.to_json() if as_json else analysis_text(analysis, terminal_width()))
    _write_outputs(analysis, html, plot)


def _check_outputs(html: str | None, plot: str | None) -> None:
    """Refuse before the work what would fail after it."""
    if plot is not None and Path(plot).suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"--plot {plot}: give a file name that ends in .png or .svg")
    for option, path in (("--html", html), ("--plot", plot)):
        if path is not None and not Path(path).parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {Path(path).parent}; make it first")


def _write_outputs(analysis: Analysis, html: str | None, plot: str | None) -> None:
    if html is not None:
        from kvquant.report.analysis import write_page

        write_page(analysis, html)
        click.echo(f"kvquant: wrote {html}", err=True)
    if plot is not None:
        from kvquant.report.analysis_figures import write_plot

        write_plot(analysis, plot)
        click.echo(f"kvquant: wrote {plot}", err=True)
