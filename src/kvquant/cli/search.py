"""`kvquant search`: the best policy within a number of bytes, by measured KL or by a capture."""

from __future__ import annotations

from pathlib import Path

import click

from kvquant.analysis import DEFAULT_N_CTX, PROFILES
from kvquant.cli.options import (
    N_BYTES,
    budget_option,
    ctx_option,
    jobs_option,
    json_option,
    llama_bin_option,
    shape_from_options,
    shape_options,
    threads_option,
)
from kvquant.cli.progress import counted
from kvquant.cli.transforms import transform_option
from kvquant.documents import to_json
from kvquant.errors import UsageError
from kvquant.search import TYPES
from kvquant.search import search as run_search


@click.command()
@budget_option("Bytes of K and V, such as 256MiB, or a share of f16: 0.35x.")
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="NATS",
    help="Instead: the fewest bytes that lose at most NATS per token on the fitting text.",
)
@click.option(
    "--ram",
    type=N_BYTES,
    metavar="SIZE",
    help="Instead: what fits beside the weights in this much memory, at --ctx.",
)
@ctx_option("Tokens to count bytes for.", default=str(DEFAULT_N_CTX), show_default=True)
@click.option(
    "--types", default=",".join(TYPES), show_default=True, metavar="NAMES", help="The types to choose from."
)
@click.option(
    "--min-speed",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Time decoding with every type first, and leave out types below this share of f16's: 0.9.",
)
@shape_options
@click.option(
    "--text",
    metavar="NAME|FILE",
    help="Measure on this text; a known name (kvquant texts) means its calibration part.",
)
@click.option(
    "--held-out",
    metavar="NAME|FILE",
    help="The text to compare policies on.  [default: another kind, prose or code]",
)
@click.option(
    "--chunk",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens of a chunk of text; all but its first quarter are scored.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Score at least N on the fitting text for each policy.",
)
@click.option(
    "--side-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="The same for one side of one layer.  [default: as --tokens]",
)
@click.option(
    "--held-out-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="The same on the held-out text.  [default: as --tokens]",
)
@click.option(
    "--random",
    "n_random",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    metavar="N",
    help="Random policies of the same size to compare with.",
)
@click.option(
    "--quick", is_flag=True, help="Choose from a capture instead of measuring each side; needs --capture."
)
@click.option(
    "--reverse",
    is_flag=True,
    help="Measure each side as the only one in f16, not the only quantized one; for strong interactions.",
)
@click.option("--capture", metavar="FILE", help="K and V of a real run (kvquant capture).")
@click.option(
    "--profile", type=click.Choice(tuple(PROFILES)), help="Without a text: synthetic K and V to use."
)
@click.option("--seed", default=0, show_default=True, metavar="S", help="Seed of all random choices.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep measurements, result and a page there; run the same command again to resume.",
)
@click.option(
    "--preset-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the policy as a preset of llama-server's router (--models-preset).",
)
@transform_option("Measure every policy with this exact change of K (kvquant calibrate).")
@llama_bin_option
@threads_option("Threads of the program.")
@jobs_option
@json_option
def search(
    budget: int | float | None,
    max_kl: float | None,
    ram: int | None,
    ctx: int,
    types: str,
    min_speed: float | None,
    model: Path | None,
    shape: str | None,
    text: str | None,
    held_out: str | None,
    chunk: int,
    tokens: int,
    side_tokens: int | None,
    held_out_tokens: int | None,
    n_random: int,
    quick: bool,
    reverse: bool,
    capture: str | None,
    profile: str | None,
    seed: int,
    out: Path | None,
    preset_file: Path | None,
    transform: Path | None,
    llama_bin: Path | None,
    threads: int | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Find the best policy within a budget, and print it.

    With --text: measures one side of one layer at a time in llama.cpp (KL divergence from f16), finds the
    best combination in exact bytes, measures the candidates whole, and compares the best with simple
    rules on held-out text. Takes minutes to hours; --out keeps every measurement.

    Without --text: computes the error of every pair of types in every layer of a capture or of synthetic
    K and V, in seconds. The policy is then only as good as that proxy. Details: docs/search.md.

    \b
    Example:
      kvquant search --model smollm2-135m --text prose --budget 0.35x --out runs/search
      kvquant search --model model.gguf --text book.txt --max-kl 0.02 --ctx 16k
      kvquant search --model model.gguf --text prose --ram 6GiB --ctx 64k --preset-file presets.ini
      kvquant search --budget 160MiB --capture kv.npz --types q8_0,q4_0
    """
    names = tuple(dict.fromkeys(name for name in types.split(",") if name))
    if sum(given is not None for given in (budget, max_kl, ram)) != 1:
        raise UsageError("give one of --budget SIZE|SHARE, --max-kl NATS and --ram SIZE")
    if text is not None:
        from kvquant.cli.search_measured import Asked, measured_search

        asked = Asked(
            budget,
            max_kl,
            ram,
            ctx,
            names,
            min_speed,
            model,
            shape,
            text,
            held_out,
            chunk,
            tokens,
            side_tokens or tokens,
            held_out_tokens or tokens,
            n_random,
            quick,
            reverse,
            capture,
            seed,
            out,
            preset_file,
            transform,
            llama_bin,
            threads,
            jobs,
            as_json,
        )
        measured_search(asked)
        return
    if (
        budget is None
        or quick
        or reverse
        or any(given is not None for given in (out, preset_file, transform, min_speed))
    ):
        raise UsageError("without --text only --budget works, because no loss is measured; add --text NAME")
    with counted("layers") as progress:
        found = run_search(
            budget,
            types=names,
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
