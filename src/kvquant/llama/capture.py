"""K, V and Q of a real run, through `llama-kv-capture`: what attention is given, layer by layer.

The program (patches/llama.cpp/0003-kv-divergence) runs a text through a model with a float32 cache, which is
neither rounded nor rotated, and writes K and V as they are stored and the queries of some positions as the
attention operation reads them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvquant.documents import from_document
from kvquant.errors import CaptureError, KVQuantError, LlamaError
from kvquant.llama.logs import failure_line
from kvquant.model.architectures import shape_as_if_plain
from kvquant.model.capture import FloatArray, KVCapture, LayerAxes, LayerCapture
from kvquant.model.gguf_file import open_model
from kvquant.model.shape import ModelShape
from kvquant.processes.background import BackgroundProgram, clean_environment
from kvquant.processes.command import follow

PROGRAM = "llama-kv-capture"
SCHEMA_VERSION = 1
DEFAULT_N_QUERIES = 256


@dataclass(frozen=True)
class CaptureRequest:
    """What to run.

    programs: the folder of llama-kv-capture. shape: None for a model without memory rules, which then counts
    as plain; what the program says of every layer is held against it. text: a file, read as it is, without a
    chat template. n_ctx: take the first so many tokens at most, None for as many as the model was trained on.
    n_queries: positions whose queries are kept, evenly spread, the last token's among them. n_threads: None
    leaves it to the program.
    """

    programs: Path
    model: Path
    shape: ModelShape | None
    text: Path
    n_ctx: int | None = None
    n_queries: int = DEFAULT_N_QUERIES
    n_threads: int | None = None

    def arguments(self, folder: Path) -> list[str]:
        """Return the command line after the program's name. folder: where the values go."""
        arguments = ["--model", str(self.model), "--file", str(self.text), "--output", str(folder)]
        arguments += ["--ctx-size", str(self.n_ctx or 0), "--queries", str(self.n_queries)]
        return arguments if self.n_threads is None else [*arguments, "--threads", str(self.n_threads)]


@dataclass(frozen=True)
class _Start:
    schema_version: int
    n_text_tokens: int
    n_tokens: int
    q_positions: tuple[int, ...]


@dataclass(frozen=True)
class _Batch:
    n_tokens: int


@dataclass(frozen=True)
class _Layer:
    layer: int
    n_head: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    logit_scale: float
    soft_cap: float


@dataclass(frozen=True)
class _End:
    layers: tuple[_Layer, ...]


@contextmanager
def captured(
    request: CaptureRequest, work: Path, on_tokens: Callable[[int, int], None] = lambda _done, _all: None
) -> Iterator[KVCapture]:
    """Run the text through the model and give K, V and Q of every layer that keeps a cache.

    work: a folder with room for the values, which lie in files there until the block ends. on_tokens: told
    how many of how many tokens are done. Raises CaptureError when the model keeps no K and V, LlamaError when
    the program fails, KVQuantError when the values cannot be written.
    """
    program = request.programs / PROGRAM
    if not program.is_file():
        raise LlamaError(f"there is no {PROGRAM} in {request.programs}; kvquant llama build makes one")
    model = open_model(request.model)
    model.require_loadable()
    shape = request.shape or shape_as_if_plain(model)
    if not shape.filled_kv_indices:
        raise CaptureError(f"{model.shown}: no layer keeps a K/V cache; there is nothing to capture")
    if shape.mla:
        raise CaptureError(f"{model.shown}: latent attention stores no V; there is nothing to capture")
    try:
        folder = tempfile.TemporaryDirectory(prefix=".kvquant-capture-", dir=work)
    except OSError as error:
        raise KVQuantError(f"cannot write in {work}: {error.strerror}; choose a writable folder") from error
    with folder as name:
        start, end = _run(program, request, Path(name), on_tokens)
        yield _assemble(Path(name), request, shape, start, end)


def _run(
    program: Path, request: CaptureRequest, folder: Path, on_tokens: Callable[[int, int], None]
) -> tuple[_Start, _End]:
    starts: list[_Start] = []
    ends: list[_End] = []
    other: list[str] = []

    def read(line: str) -> None:
        if not line.startswith("{"):
            other.append(line)
            return
        document = json.loads(line)
        kind = document.get("kind")
        where = f"{PROGRAM}: {kind}"
        if kind == "start":
            starts.append(from_document(_Start, document, where, error=LlamaError))
        elif kind == "batch" and starts:
            batch = from_document(_Batch, document, where, error=LlamaError)
            on_tokens(batch.n_tokens, starts[0].n_tokens)
        elif kind == "end":
            ends.append(from_document(_End, document, where, error=LlamaError))

    argv = [str(program), *request.arguments(folder)]
    with BackgroundProgram(argv, folder / "log", env=clean_environment()) as running:
        status = follow(running, read)
    if status:
        raise LlamaError(f"{PROGRAM} ended with status {status}: {failure_line(chr(10).join(other))}")
    if len(starts) != 1 or len(ends) != 1 or starts[0].schema_version != SCHEMA_VERSION:
        raise LlamaError(
            f"{PROGRAM} printed lines that this kvquant cannot read; rebuild it: kvquant llama build"
        )
    return starts[0], ends[0]


def _assemble(
    folder: Path, request: CaptureRequest, shape: ModelShape, start: _Start, end: _End
) -> KVCapture:
    layers = []
    for found in end.layers:
        if found.layer not in shape.kv_layers:
            raise LlamaError(
                f"{PROGRAM} gave layer {found.layer}, which has no cache according to the file's header"
            )
        sizes = shape.layers[found.layer]
        axes = LayerAxes(
            found.layer,
            found.n_head,
            found.n_head_kv,
            found.head_dim_k,
            found.head_dim_v,
            found.logit_scale,
            sizes.window,
        )
        kv_axes = (start.n_tokens, axes.n_head_kv)
        layers.append(
            LayerCapture(
                axes,
                k=_mapped(folder / f"k.{found.layer}", (*kv_axes, axes.head_dim_k)),
                v=_mapped(folder / f"v.{found.layer}", (*kv_axes, axes.head_dim_v)),
                q=_mapped(
                    folder / f"q.{found.layer}", (len(start.q_positions), axes.n_head, axes.head_dim_k)
                ),
            )
        )
    filled = tuple(shape.kv_layers[i] for i in shape.filled_kv_indices)
    if tuple(layer.axes.layer for layer in layers) != filled:
        raise LlamaError(f"{PROGRAM} left out layers that have a cache according to the file's header")
    of_text = "" if start.n_tokens == start.n_text_tokens else f" of {start.n_text_tokens}"
    return KVCapture(
        model=shape.name,
        arch=shape.arch,
        n_layer=shape.n_layer,
        source=f"{PROGRAM}, f32 cache, the first {start.n_tokens}{of_text} tokens of {request.text.name}",
        positions=np.arange(start.n_tokens, dtype=np.int32),
        layers=tuple(layers),
        queries="captured",
        q_positions=np.array(start.q_positions, dtype=np.int32),
    )


def _mapped(path: Path, axes: tuple[int, ...]) -> FloatArray:
    """The values of a file, float32 (axes), read from the disk when they are used."""
    if path.stat().st_size != 4 * int(np.prod(axes)):
        raise LlamaError(f"{PROGRAM} wrote {path.stat().st_size} bytes of {path.name}, not {axes} values")
    return np.memmap(path, dtype=np.float32, mode="r", shape=axes)
