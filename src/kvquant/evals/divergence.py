"""Per-token KL divergence of KV caches from a baseline, through `llama-kv-divergence`.

The program (patches/llama.cpp/0003-kv-divergence) loads the weights once and feeds the same tokens, chunk by
chunk, to the baseline's cache and then to each policy's. It prints one JSON object a line: ``start``, for
each chunk a ``baseline`` and a ``chunk`` of every policy, ``failed`` for a policy it leaves out from then on,
``end``.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from kvquant.documents import from_document
from kvquant.errors import LlamaError, UsageError
from kvquant.llama.logs import failure_line
from kvquant.processes.background import BackgroundProgram, clean_environment
from kvquant.processes.command import follow
from kvquant.transform import TransformFile

PROGRAM = "llama-kv-divergence"
SCHEMA_VERSION = 2
SILENCE_SECONDS = 3600.0
"""How long the program may print nothing: loading and one long chunk of several contexts on a slow board."""

FeedPath = Literal["prefill", "decode"]

_KEPT_LOG_LINES = 200

T = TypeVar("T")


@dataclass(frozen=True)
class CacheSetup:
    """A cache and how it is fed.

    policy: canonical text. rotation: llama.cpp's Hadamard rotation of what is quantized. transform: of K
    before it is stored, None for none. path: ``prefill`` feeds scored tokens as batches, ``decode`` one by
    one after those before them went in as batches. n_chunks: scored chunks that are enough, None for all.
    """

    policy: str = "*:f16"
    rotation: bool = True
    path: FeedPath = "prefill"
    n_chunks: int | None = None
    transform: TransformFile | None = None

    def arguments(self, prefix: str = "--") -> list[str]:
        """Return the options of the program that stand for it."""
        arguments = [f"{prefix}kv-layers", self.policy, f"{prefix}path", self.path]
        arguments += [] if self.rotation else [f"{prefix}no-rotation"]
        arguments += [] if self.transform is None else [f"{prefix}kv-transform", str(self.transform.path)]
        return arguments if self.n_chunks is None else [*arguments, f"{prefix}n-chunks", str(self.n_chunks)]

    def on_the_other_path(self, n_chunks: int | None = None) -> CacheSetup:
        """The same cache fed the other way: what measures the floor.

        Two equal computations would agree bit for bit. What a difference of the caches has to exceed is what
        the order of the sums alone makes of the same cache: batches against one token at a time.
        """
        other: FeedPath = "decode" if self.path == "prefill" else "prefill"
        return replace(self, path=other, n_chunks=n_chunks)


@dataclass(frozen=True)
class DivergenceRequest:
    """What to compare on which texts; each text is a document, cut into chunks of n_ctx tokens.

    n_ctx: 0 for as many as the model was trained on. score_from: first position of a chunk that is scored,
    None for half of n_ctx. every: score every so many positions. n_tokens: score at most so many, None for
    all. parse_special: names of special tokens in the texts stand for these tokens. n_threads: None leaves it
    to the program. n_jobs: policies that run at the same time, each with its part of the threads. n_contexts:
    so many policies at most keep their contexts from chunk to chunk, None leaves it to the program.
    """

    model: Path
    texts: tuple[Path, ...]
    policies: tuple[CacheSetup, ...]
    baseline: CacheSetup = CacheSetup()
    n_ctx: int = 512
    n_ubatch: int = 512
    score_from: int | None = None
    every: int = 1
    n_tokens: int | None = None
    parse_special: bool = False
    n_threads: int | None = None
    n_jobs: int = 1
    n_contexts: int | None = None

    def arguments(self, skip_chunks: int = 0) -> list[str]:
        """Return the command line after the program's name. skip_chunks: what an earlier run has given."""
        arguments = ["--model", str(self.model)]
        for text in self.texts:
            arguments += ["--file", str(text)]
        arguments += ["--ctx-size", str(self.n_ctx), "--ubatch-size", str(self.n_ubatch)]
        arguments += [
            "--every",
            str(self.every),
            "--skip-chunks",
            str(skip_chunks),
            "--jobs",
            str(self.n_jobs),
        ]
        given = {
            "--score-from": self.score_from,
            "--n-tokens": self.n_tokens,
            "--threads": self.n_threads,
            "--contexts": self.n_contexts,
        }
        for name, value in given.items():
            arguments += [] if value is None else [name, str(value)]
        arguments += ["--parse-special"] if self.parse_special else []
        arguments += self.baseline.arguments("--base-")
        for policy in self.policies:
            arguments += policy.arguments()
        return arguments


@dataclass(frozen=True)
class TokenDivergence:
    """One scored token: how far a policy's prediction of its successor is from the baseline's.

    document, chunk (in its document) and position (in its chunk) count from 0. kl: KL divergence of the
    policy from the baseline over the whole vocabulary, nats. same_top: both hold the same token to be the
    most likely. nll_baseline, nll_policy: negative log probability of the token that follows in the text,
    nats.
    """

    document: int
    chunk: int
    position: int
    kl: float
    same_top: bool
    nll_baseline: float
    nll_policy: float

    @property
    def delta_p(self) -> float:
        """Probability of the token that follows, policy minus baseline."""
        return math.exp(-self.nll_policy) - math.exp(-self.nll_baseline)


OnChunk = Callable[[int, Sequence[TokenDivergence]], None]
"""Given a policy's index in the request and the scored tokens of its next chunk."""


def measure_divergence(
    programs: Path,
    request: DivergenceRequest,
    log: Path,
    on_chunk: OnChunk,
    *,
    on_start: Callable[[int], None] = lambda _: None,
    on_failure: Callable[[int, str], None] = lambda _index, _what: None,
    skip_chunks: int = 0,
    silence_seconds: float = SILENCE_SECONDS,
) -> None:
    """Run the program of the folder ``programs``; give every policy's chunk to ``on_chunk`` once it is known.

    log: file for all that the program prints. on_start: given the number of chunks, skipped ones included.
    on_failure: given a policy that is left out from then on, and why. skip_chunks: how many chunks an earlier
    run has given; the rest comes out as it would have.

    The program ends with the caller, however the caller ends. Raises LlamaError, with the line of its log
    that explains it, when it fails, when every policy does, when it says nothing for silence_seconds, or
    prints a damaged line; UsageError for arguments that it does not take.
    """
    program = programs / PROGRAM
    if not program.is_file():
        raise LlamaError(f"there is no {PROGRAM} in {programs}; kvquant llama build makes one")
    reader = _LineReader(len(request.policies), on_chunk, on_start, on_failure)
    other: deque[str] = deque(maxlen=_KEPT_LOG_LINES)
    argv = [str(program), *request.arguments(skip_chunks)]

    def read(line: str) -> None:
        if line.startswith("{"):
            reader.read(line)
        else:
            other.append(line)

    with BackgroundProgram(argv, log, env=clean_environment()) as running:
        status = follow(running, read, silence_seconds=silence_seconds)
    if status:
        kind = UsageError if status == UsageError.exit_code else LlamaError
        raise kind(f"{PROGRAM} ended with status {status}: {failure_line(chr(10).join(other))} (log: {log})")
    if not reader.ended:
        raise LlamaError(f"{PROGRAM} ended without its last line (log: {log})")


def check_token(token: TokenDivergence) -> TokenDivergence:
    """Return the token when its numbers are what they can be. Raises LlamaError naming one that is not."""
    for name in ("document", "chunk", "position"):
        if getattr(token, name) < 0:
            raise LlamaError(f"{name} is {getattr(token, name)}, not a count")
    for name in ("kl", "nll_baseline", "nll_policy"):
        if not 0 <= getattr(token, name) < math.inf:
            raise LlamaError(f"{name} is {getattr(token, name)}, not a number of nats from 0")
    return token


@dataclass(frozen=True)
class _Start:
    schema_version: int
    n_chunks: int


@dataclass(frozen=True)
class _Baseline:
    document: int
    chunk: int
    positions: tuple[int, ...]
    nll: tuple[float, ...]


@dataclass(frozen=True)
class _Chunk:
    policy: int
    document: int
    chunk: int
    kl: tuple[float, ...]
    same_top: tuple[bool, ...]
    nll: tuple[float, ...]


@dataclass(frozen=True)
class _Failed:
    policy: int
    what: str


@dataclass(frozen=True)
class _Sums:
    n_tokens: int


@dataclass(frozen=True)
class _End:
    policies: tuple[_Sums, ...]


class _LineReader:
    """The program's lines in their order: a start, chunks behind their baselines, an end that counts them."""

    def __init__(
        self,
        n_policies: int,
        on_chunk: OnChunk,
        on_start: Callable[[int], None],
        on_failure: Callable[[int, str], None],
    ) -> None:
        self._on_chunk = on_chunk
        self._on_start = on_start
        self._on_failure = on_failure
        self._started = False
        self._baseline: _Baseline | None = None
        self._n_tokens = [0] * n_policies
        self.ended = False

    def read(self, line: str) -> None:
        try:
            document = json.loads(line)
            kind = document.get("kind")
            if self.ended or self._started == (kind == "start"):
                raise LlamaError(f"a line of kind {kind!r} is out of place")
            if kind == "start":
                self._start(_parse(_Start, document))
            elif kind == "baseline":
                self._baseline = _parse(_Baseline, document)
            elif kind == "chunk":
                self._chunk(_parse(_Chunk, document))
            elif kind == "failed":
                failed = _parse(_Failed, document)
                self._on_failure(self._index(failed.policy), failed.what)
            elif kind == "end":
                self._end(_parse(_End, document))
            else:
                raise LlamaError(f"no line is of kind {kind!r}")
        except ValueError as error:
            raise LlamaError(f"{PROGRAM} printed a line that is not JSON: {line[:80]}") from error
        except LlamaError as error:
            raise LlamaError(f"{PROGRAM} printed a damaged line: {error}: {line[:80]}") from error

    def _start(self, start: _Start) -> None:
        if start.schema_version != SCHEMA_VERSION:
            raise LlamaError(f"schema version {start.schema_version}, this kvquant reads {SCHEMA_VERSION}")
        self._started = True
        self._on_start(start.n_chunks)

    def _chunk(self, chunk: _Chunk) -> None:
        index, baseline = self._index(chunk.policy), self._baseline
        if baseline is None or (baseline.document, baseline.chunk) != (chunk.document, chunk.chunk):
            raise LlamaError("the line before it is not of this chunk's baseline")
        columns = (baseline.positions, chunk.kl, chunk.same_top, baseline.nll, chunk.nll)
        if len({len(column) for column in columns}) > 1 or not baseline.positions:
            raise LlamaError("its lists differ in length")
        tokens = [
            check_token(TokenDivergence(chunk.document, chunk.chunk, *row))
            for row in zip(*columns, strict=True)
        ]
        self._n_tokens[index] += len(tokens)
        self._on_chunk(index, tokens)

    def _index(self, policy: int) -> int:
        if not 0 <= policy < len(self._n_tokens):
            raise LlamaError(f"there is no policy {policy}")
        return policy

    def _end(self, end: _End) -> None:
        if [sums.n_tokens for sums in end.policies] != self._n_tokens:
            raise LlamaError(f"it counts other than the {self._n_tokens} tokens before it")
        self.ended = True


def _parse(kind: type[T], document: Any) -> T:
    return from_document(kind, document, "line", error=LlamaError)
