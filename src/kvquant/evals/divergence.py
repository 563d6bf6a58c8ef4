"""Per-token KL divergence between two KV caches of one model, through `llama-kv-divergence`.

The program (patches/llama.cpp/0003-kv-divergence) feeds the same tokens to a baseline and to a policy cache
on one set of weights and prints one JSON object a line: ``start``, a ``token`` per scored token, ``end``.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kvquant.errors import LlamaError, UsageError
from kvquant.llama.logs import failure_line
from kvquant.processes.background import BackgroundProgram, clean_environment
from kvquant.processes.command import follow

PROGRAM = "llama-kv-divergence"
SCHEMA_VERSION = 1
SILENCE_SECONDS = 1800.0
"""How long the program may print nothing: loading and one prefill of both contexts on a slow board."""

FeedPath = Literal["prefill", "decode"]

_KEPT_LOG_LINES = 200
_ROUNDING = 1e-9
"""How far a line's numbers may contradict each other; they are printed with every digit."""


@dataclass(frozen=True)
class CacheTypes:
    """The types of a cache. kv_layers: a policy; k_type and v_type are the types where it names none."""

    kv_layers: str | None = None
    k_type: str = "f16"
    v_type: str = "f16"


@dataclass(frozen=True)
class DivergenceRequest:
    """What to compare on which texts; each text is a document, cut into chunks of n_ctx tokens.

    path: ``prefill`` feeds scored tokens as batches of n_ubatch, ``decode`` one by one after those before
    them went in as batches. baseline_path: the baseline's, None for the same. n_ctx: 0 for as many as the
    model was trained on. score_from: first position of a chunk that is scored, None for half of n_ctx. every:
    score every so many positions. n_tokens: score at most so many, None for all. parse_special: names of
    special tokens in the texts stand for these tokens. n_threads: None leaves it to the program.
    """

    model: Path
    texts: tuple[Path, ...]
    policy: CacheTypes
    baseline: CacheTypes = CacheTypes()
    path: FeedPath = "prefill"
    baseline_path: FeedPath | None = None
    n_ctx: int = 512
    n_ubatch: int = 512
    score_from: int | None = None
    every: int = 1
    n_tokens: int | None = None
    parse_special: bool = False
    n_threads: int | None = None

    def against_itself(self) -> DivergenceRequest:
        """The request that measures the floor: the baseline on this path against itself on the other one.

        Two equal computations would agree bit for bit. What a difference of the caches has to exceed is what
        the order of the sums alone makes of the same cache: batches against one token at a time.
        """
        other: FeedPath = "decode" if self.path == "prefill" else "prefill"
        return replace(self, policy=self.baseline, baseline_path=other)

    def arguments(self, skip: int = 0) -> list[str]:
        """Return the command line after the program's name. skip: scored tokens an earlier run has given."""
        arguments = ["--model", str(self.model)]
        for text in self.texts:
            arguments += ["--file", str(text)]
        arguments += ["--ctx-size", str(self.n_ctx), "--ubatch-size", str(self.n_ubatch)]
        arguments += ["--every", str(self.every), "--skip", str(skip)]
        if self.score_from is not None:
            arguments += ["--score-from", str(self.score_from)]
        if self.n_tokens is not None:
            arguments += ["--n-tokens", str(self.n_tokens)]
        if self.parse_special:
            arguments += ["--parse-special"]
        if self.n_threads is not None:
            arguments += ["--threads", str(self.n_threads)]
        arguments += ["--path", self.path, "--base-path", self.baseline_path or self.path]
        return [*arguments, *_type_arguments("--", self.policy), *_type_arguments("--base-", self.baseline)]


@dataclass(frozen=True)
class TokenDivergence:
    """One scored token: how far the policy's prediction of its successor is from the baseline's.

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


def measure_divergence(
    programs: Path,
    request: DivergenceRequest,
    log: Path,
    on_token: Callable[[TokenDivergence], None],
    *,
    on_start: Callable[[int], None] = lambda _: None,
    skip: int = 0,
    silence_seconds: float = SILENCE_SECONDS,
) -> None:
    """Run the program of the folder ``programs`` and give each token to ``on_token`` once it is known.

    log: file for all that the program prints. on_start: given the number of scored tokens, skipped ones
    included. skip: how many of them an earlier run has given; the rest comes out as it would have.

    The program ends with the caller, however the caller ends. Raises LlamaError, with the line of its log
    that explains it, when it fails, says nothing for silence_seconds, or prints a damaged line; UsageError
    for arguments that it does not take.
    """
    program = programs / PROGRAM
    if not program.is_file():
        raise LlamaError(f"there is no {PROGRAM} in {programs}; kvquant llama build makes one")
    reader = _LineReader(on_token, on_start)
    other: deque[str] = deque(maxlen=_KEPT_LOG_LINES)
    argv = [str(program), *request.arguments(skip)]

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


def parse_token(document: Mapping[str, Any]) -> TokenDivergence:
    """Build a token from a line's object, checked against what the numbers can be.

    `dataclasses.asdict` of a token is such an object. Raises LlamaError naming what is wrong.
    """
    token = TokenDivergence(
        document=_count(document, "document"),
        chunk=_count(document, "chunk"),
        position=_count(document, "position"),
        kl=_nats(document, "kl"),
        same_top=_truth(document, "same_top"),
        nll_baseline=_nats(document, "nll_baseline"),
        nll_policy=_nats(document, "nll_policy"),
    )
    delta_p = document.get("delta_p", token.delta_p)
    if not isinstance(delta_p, int | float) or not abs(delta_p - token.delta_p) <= _ROUNDING:
        raise LlamaError(f"delta_p {delta_p!r} is not what nll_baseline and nll_policy say")
    return token


class _LineReader:
    """The program's lines in their order: one start, tokens, one end that counts them."""

    def __init__(self, on_token: Callable[[TokenDivergence], None], on_start: Callable[[int], None]) -> None:
        self._on_token = on_token
        self._on_start = on_start
        self._started = False
        self._n_tokens = 0
        self.ended = False

    def read(self, line: str) -> None:
        try:
            document = json.loads(line)
            kind = document.get("kind")
            if self.ended or self._started == (kind == "start"):
                raise LlamaError(f"a line of kind {kind!r} is out of place")
            if kind == "start":
                self._start(document)
            elif kind == "token":
                self._on_token(self._counted(parse_token(document)))
            elif kind == "end":
                self._end(document)
            else:
                raise LlamaError(f"no line is of kind {kind!r}")
        except ValueError as error:
            raise LlamaError(f"{PROGRAM} printed a line that is no JSON: {line[:80]}") from error
        except LlamaError as error:
            raise LlamaError(f"{PROGRAM} printed a damaged line: {error}: {line[:80]}") from error

    def _start(self, document: Mapping[str, Any]) -> None:
        version = document.get("schema_version")
        if version != SCHEMA_VERSION:
            raise LlamaError(f"schema version {version!r}, this kvquant reads {SCHEMA_VERSION}")
        self._started = True
        self._on_start(_count(document, "n_tokens"))

    def _counted(self, token: TokenDivergence) -> TokenDivergence:
        self._n_tokens += 1
        return token

    def _end(self, document: Mapping[str, Any]) -> None:
        if _count(document, "n_tokens") != self._n_tokens:
            raise LlamaError(f"it counts other than the {self._n_tokens} tokens before it")
        self.ended = True


def _type_arguments(prefix: str, cache: CacheTypes) -> list[str]:
    policy = [] if cache.kv_layers is None else [f"{prefix}kv-layers", cache.kv_layers]
    return [*policy, f"{prefix}cache-type-k", cache.k_type, f"{prefix}cache-type-v", cache.v_type]


def _count(document: Mapping[str, Any], key: str) -> int:
    value = document.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LlamaError(f"{key} is {value!r}, not a count")
    return value


def _nats(document: Mapping[str, Any], key: str) -> float:
    value = document.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise LlamaError(f"{key} is {value!r}, not a number of nats from 0")
    return float(value)


def _truth(document: Mapping[str, Any], key: str) -> bool:
    value = document.get(key)
    if not isinstance(value, bool):
        raise LlamaError(f"{key} is {value!r}, not true or false")
    return value
