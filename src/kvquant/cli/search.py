"""`kvquant search`: the most accurate policy within a number of bytes."""

from __future__ import annotations

from pathlib import Path

import click

from kvquant.analysis import DEFAULT_N_CTX, PROFILES
from kvquant.cli.options import budget_option, ctx_option, json_option, shape_from_options, shape_options
from kvquant.cli.progress import progress_bar
from kvquant.documents import to_json
from kvquant.search import TYPES
from kvquant.search import search as run_search


@click.command()
@budget_option("Bytes, such as 256MiB, or a share of f16: 0.35x.", required=True)
@click.option(
    "--types", default=",".join(TYPES), show_default=True, metavar="NAMES", help="The types that may be used."
)
@shape_options
@click.option("--capture", metavar="FILE", help="K and V of a real run (kvquant capture).")
@click.option("--profile", type=click.Choice(tuple(PROFILES)), help="Synthetic K and V to use.")
@ctx_option("Tokens to count bytes for.", default=DEFAULT_N_CTX, show_default=True)
@click.option("--seed", default=0, show_default=True, metavar="S", help="Seed of everything synthetic.")
@json_option
def search(
    budget: int | float,
    types: str,
    model: Path | None,
    shape: str | None,
    capture: str | None,
    profile: str | None,
    ctx: int,
    seed: int,
    as_json: bool,
) -> None:
    """Find the policy with the least attention-output error within a budget, and print its text.

    Every pair of types is measured in every layer; the best combination is then found exactly. The policy is
    only as good as the data: search on a capture of the model, then run `kvquant validate`.

    \b
    Example:
      kvquant search --budget 0.35x
      kvquant search --budget 160MiB --capture kv.npz --types q8_0,q4_0
      kvquant analyze --policy "$(kvquant search --budget 0.35x)"
    """
    with progress_bar("layers") as progress:
        found = run_search(
            budget,
            types=[name for name in types.split(",") if name],
            shape=None if model is None and shape is None else shape_from_options(model, shape),
            profile=profile,
            capture=capture,
            n_ctx=ctx,
            seed=seed,
            progress=progress,
        )
    click.echo(to_json(found.document(ctx)) if as_json else str(found.policy))
    if not as_json:
        click.echo(f"kvquant: {found.sentence}", err=True)
