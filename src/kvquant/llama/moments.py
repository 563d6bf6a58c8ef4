"""The moments of keys and queries of a real run, through `llama-kv-moments`: what a K transform is fitted
from.

The program (patches/llama.cpp/0005-kv-transform) runs a text through a model in chunks and sums, per layer
and KV head, Σw, Σwk, Σwkkᵀ and Σwqqᵀ in float64, of keys and queries after RoPE and before any rotation. With
p the probability that a query gives a key of value v, and o what attention returns, w is the sum of
p² |v − o|²: an error of a logit moves o by p (v − o). No activation is kept beyond a chunk.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvquant.documents import from_document
from kvquant.errors import KVQuantError, LlamaError, UsageError
from kvquant.files import write_atomic
from kvquant.llama.logs import failure_line
from kvquant.processes.background import BackgroundProgram, clean_environment
from kvquant.processes.command import follow
from kvquant.transform import HeadMoments, LayerMoments

PROGRAM = "llama-kv-moments"
SCHEMA_VERSION = 2

_SUMS = ("key_weight", "query_weight", "key_sum", "key_square", "query_square")
"""What `HeadMoments` holds of a head, in the order of its fields and of the program's file."""


@dataclass(frozen=True)
class MomentsRequest:
    """What to run.

    programs: the folder of llama-kv-moments. text: a file, read as it is. n_ctx: tokens of a chunk, so the
    positions that are seen; 0 for as many as the model was trained on. n_tokens: of the text at most, None
    for all. n_threads: None leaves it to the program. n_skipped: tokens that are left out before those, so
    that a text can be summed in parts.
    """

    programs: Path
    model: Path
    text: Path
    n_ctx: int = 512
    n_tokens: int | None = None
    n_threads: int | None = None
    n_skipped: int = 0

    def arguments(self, output: Path) -> list[str]:
        """Return the command line after the program's name. output: the file for the sums."""
        arguments = ["--model", str(self.model), "--file", str(self.text), "--output", str(output)]
        arguments += ["--ctx-size", str(self.n_ctx), "--n-tokens", str(self.n_tokens or 0)]
        arguments += ["--skip-tokens", str(self.n_skipped)] if self.n_skipped else []
        return arguments if self.n_threads is None else [*arguments, "--threads", str(self.n_threads)]


@dataclass(frozen=True)
class Moments:
    """The moments of every layer that keeps a cache, ascending, and how many tokens they were summed over.

    n_text_tokens: of the whole text, with those that were left out.
    """

    layers: tuple[LayerMoments, ...]
    n_tokens: int
    n_text_tokens: int

    def __add__(self, other: Moments) -> Moments:
        layers = tuple(one + two for one, two in zip(self.layers, other.layers, strict=True))
        return Moments(layers, self.n_tokens + other.n_tokens, self.n_text_tokens)


@dataclass(frozen=True)
class _Start:
    schema_version: int
    n_text_tokens: int
    n_tokens: int


@dataclass(frozen=True)
class _Batch:
    n_tokens: int


@dataclass(frozen=True)
class _Layer:
    layer: int
    n_head_kv: int
    head_dim: int

    @property
    def n_values(self) -> int:
        """Numbers of this layer in the file."""
        return self.n_head_kv * (2 + self.head_dim + 2 * self.head_dim**2)


@dataclass(frozen=True)
class _End:
    layers: tuple[_Layer, ...]


def measure_moments(
    request: MomentsRequest, on_tokens: Callable[[int, int], None] = lambda _done, _all: None
) -> Moments:
    """Run the text through the model and return its moments.

    on_tokens: told how many of how many tokens are done. Raises LlamaError when the program is missing or
    fails, TransformError when a sum is not finite, KVQuantError without a folder for temporary files.
    """
    check_programs(request.programs)
    try:
        folder = tempfile.TemporaryDirectory(prefix="kvquant-moments-")
    except OSError as error:
        raise KVQuantError(f"no temporary folder: {error.strerror}; set TMPDIR to a writable one") from error
    with folder as name:
        return _run(request, Path(name), on_tokens)


def check_programs(programs: Path) -> None:
    """Raise LlamaError when the folder has no llama-kv-moments."""
    if not (programs / PROGRAM).is_file():
        raise LlamaError(f"there is no {PROGRAM} in {programs}; kvquant llama build makes one")


def save_moments(moments: Moments, path: Path) -> None:
    """Write moments as an NPZ file, whole. Raises KVQuantError when it cannot be written."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "n_tokens": np.array(moments.n_tokens),
        "n_text_tokens": np.array(moments.n_text_tokens),
    }
    for layer in moments.layers:
        for name in _SUMS:
            arrays[f"{layer.layer}.{name}"] = np.stack([getattr(head, name) for head in layer.heads])
    with io.BytesIO() as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        write_atomic(path, file.getvalue())


def load_moments(path: Path) -> Moments:
    """Read what `save_moments` wrote. Raises KVQuantError for anything else."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            numbers = sorted(int(name.split(".")[0]) for name in file.files if name.endswith(".key_weight"))
            if not numbers:
                raise ValueError("no layer")
            layers = []
            for number in numbers:
                heads = zip(*(file[f"{number}.{name}"] for name in _SUMS), strict=True)
                layers.append(LayerMoments(number, tuple(HeadMoments(*head) for head in heads)))
            return Moments(tuple(layers), int(file["n_tokens"]), int(file["n_text_tokens"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise KVQuantError(f"{path}: contains no moments ({error}); remove it and run again") from error


def _run(request: MomentsRequest, folder: Path, on_tokens: Callable[[int, int], None]) -> Moments:
    starts: list[_Start] = []
    ends: list[_End] = []
    other: list[str] = []

    def read(line: str) -> None:
        if not line.startswith("{"):
            other.append(line)
            return
        try:
            document = json.loads(line)
        except ValueError as error:
            raise LlamaError(f"{PROGRAM} printed a line that is not JSON: {line[:80]}") from error
        kind = document.get("kind")
        where = f"{PROGRAM}: {kind}"
        if kind == "start":
            starts.append(from_document(_Start, document, where, error=LlamaError))
        elif kind == "batch" and starts:
            on_tokens(from_document(_Batch, document, where, error=LlamaError).n_tokens, starts[0].n_tokens)
        elif kind == "end":
            ends.append(from_document(_End, document, where, error=LlamaError))

    argv = [str(request.programs / PROGRAM), *request.arguments(folder / "sums")]
    with BackgroundProgram(argv, folder / "log", env=clean_environment()) as running:
        status = follow(running, read)
    if status:
        kind = UsageError if status == UsageError.exit_code else LlamaError
        raise kind(f"{PROGRAM} ended with status {status}: {failure_line(chr(10).join(other))}")
    if len(starts) != 1 or len(ends) != 1 or starts[0].schema_version != SCHEMA_VERSION:
        raise LlamaError(
            f"{PROGRAM} printed lines that this kvquant cannot read; rebuild it: kvquant llama build"
        )
    sums = np.fromfile(folder / "sums", dtype="<f8")
    if len(sums) != sum(layer.n_values for layer in ends[0].layers):
        raise LlamaError(f"{PROGRAM} wrote {len(sums)} numbers, which do not match its layers")
    layers = tuple(_layers(ends[0].layers, sums))
    return Moments(layers, starts[0].n_tokens, starts[0].n_text_tokens)


def _layers(layers: tuple[_Layer, ...], sums: npt.NDArray[np.float64]) -> Iterator[LayerMoments]:
    for layer in layers:
        of_layer, sums = sums[: layer.n_values], sums[layer.n_values :]
        heads = []
        for head in np.split(of_layer, layer.n_head_kv):
            weights, key_sum, squares = np.split(head, (2, 2 + layer.head_dim))
            key_square, query_square = squares.reshape(2, layer.head_dim, layer.head_dim)
            key_weight, query_weight = (float(weight) for weight in weights)
            heads.append(HeadMoments(key_weight, query_weight, key_sum, key_square, query_square))
        yield LayerMoments(layer.layer, tuple(heads))
