"""`kvquant capture`: K and V of a real run, as a file that `kvquant analyze --capture` reads."""

from __future__ import annotations

from pathlib import Path

import click

from kvquant.cli.options import (
    TEXT,
    ctx_option,
    llama_bin_option,
    model_option,
    programs_folder,
    threads_option,
)
from kvquant.errors import CaptureError
from kvquant.llama.capture import CaptureRequest, capture_text
from kvquant.model.capture import save_capture


@click.command()
@model_option(required=True, help="The model, a GGUF file.")
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
@ctx_option("Tokens to make room for.  [default: the text's]")
@threads_option("Threads of llama-server.")
def capture(
    model: Path, text: Path, output: Path, llama_bin: Path | None, ctx: int | None, threads: int | None
) -> None:
    """Run a text through a model with a float32 cache and save every layer's K and V.

    K is taken after RoPE and before any rotation of llama.cpp. A saved slot holds no queries: an analysis
    draws synthetic ones and says so. Sliding-window layers keep the last tokens of their window only. Works
    for every model llama-server loads whose layers store K and V, hybrid models included.

    \b
    Example:
      kvquant capture --model model.gguf --text prompt.txt -o kv.npz
      kvquant analyze --capture kv.npz --policy 0-10:q8_0,11-31:q4_0
    """
    prompt = _read_text(text)
    found = capture_text(CaptureRequest(programs_folder(llama_bin), model, prompt, ctx, threads))
    save_capture(found, output)
    n_windowed = sum(layer.axes.window > 0 for layer in found.layers)
    windowed = f" ({n_windowed} with a sliding window, their last tokens only)" if n_windowed else ""
    click.echo(
        f"{output}: {found.n_tokens} tokens, {len(found.layers)} layers{windowed}, K and V in float32; "
        "no queries, an analysis draws synthetic ones",
        err=True,
    )


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CaptureError(f"{path}: byte {error.start} is not UTF-8; give a text file") from error
    if not text:
        raise CaptureError(f"{path}: is empty; give a text of at least a few tokens")
    return text
