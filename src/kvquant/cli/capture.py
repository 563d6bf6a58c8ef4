"""`kvquant capture`: K, V and Q of a real run, as a file that `kvquant analyze --capture` reads."""

from __future__ import annotations

from pathlib import Path

import click

from kvquant.cli.options import (
    TEXT,
    ctx_option,
    llama_bin_option,
    model_option,
    programs_folder,
    runnable_shape,
    shape_beside_option,
    threads_option,
)
from kvquant.cli.progress import counted
from kvquant.errors import CaptureError
from kvquant.llama.capture import DEFAULT_N_QUERIES, CaptureRequest, captured
from kvquant.model.capture import save_capture
from kvquant.model.gguf_file import open_model


@click.command()
@model_option(required=True, help="The model, a GGUF file.")
@shape_beside_option
@click.option(
    "--text",
    required=True,
    type=TEXT,
    metavar="NAME|FILE",
    help="The prompt: a UTF-8 text file, or a known text's name.",
)
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The NPZ file to write.",
)
@llama_bin_option
@ctx_option("Take the first N tokens at most.  [default: as many as the model was trained on]")
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    default=DEFAULT_N_QUERIES,
    show_default=True,
    metavar="N",
    help="Positions to keep queries of, evenly spread.",
)
@click.option("--half", is_flag=True, help="Store float16: half the size, as precise as an f16 cache.")
@threads_option("Threads of the program.")
def capture(
    model: Path,
    shape: str | None,
    text: Path,
    output: Path,
    llama_bin: Path | None,
    ctx: int | None,
    queries: int,
    half: bool,
    threads: int | None,
) -> None:
    """Run a text through a model with a float32 cache and save every layer's K, V and queries.

    These are the inputs of attention: after RoPE, before any rotation of llama.cpp. Works for every model
    whose layers store K and V and run flash attention, hybrid models included. Values are streamed to
    files beside the output, so they need not fit in memory.

    \b
    Example:
      kvquant capture --model model.gguf --text prompt.txt -o kv.npz
      kvquant capture --model model.gguf --text book.txt --ctx 16384 --half -o deep.npz
      kvquant analyze --capture kv.npz --policy 0-10:q8_0,11-31:q4_0
    """
    programs = programs_folder(llama_bin)
    _check_text(text)
    known = runnable_shape(open_model(model), shape)
    request = CaptureRequest(programs, model, known, text, ctx, queries, threads)
    with counted("tokens") as progress, captured(request, output.parent, progress) as found:
        save_capture(found, output, half=half)
        n_queries = 0 if found.q_positions is None else len(found.q_positions)
        click.echo(
            f"{output}: {found.n_tokens} tokens, {len(found.layers)} layers, K and V in "
            f"{'float16' if half else 'float32'}, Q of {n_queries} positions",
            err=True,
        )


def _check_text(path: Path) -> None:
    """Refuse before a model is loaded what is no text."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CaptureError(f"{path}: byte {error.start} is not UTF-8; give a text file") from error
    if not text:
        raise CaptureError(f"{path}: is empty; give a text of at least a few tokens")
