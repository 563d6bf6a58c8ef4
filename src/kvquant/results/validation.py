"""A validation, as ``results.json``, `kvquant validate --json` and `kvquant compare DIR --json` hold it.

A ratio is that of the policy to the baseline. Intervals are [low, high] at 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvquant.documents import from_document, parse_json
from kvquant.errors import KVQuantError
from kvquant.results.comparison import Estimate, Interval, TaskRow, Verdict, total_row
from kvquant.results.transform import TransformUsed

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelFile:
    """The model: its name and architecture from the header, and which file exactly."""

    name: str
    sha256: str
    n_bytes: int
    arch: str
    n_layer: int


@dataclass(frozen=True)
class SuiteUsed:
    """The suite and the rules that made the verdicts."""

    name: str
    about: str
    digest: str
    rules: Mapping[str, Any]


@dataclass(frozen=True)
class LayerBytes:
    """The cache of one layer. v_bytes is 0 where V is not stored."""

    layer: int
    k_type: str
    v_type: str
    k_bytes: int
    v_bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes of the KV cache as llama.cpp logged them, as `kvquant memory` computes them and as a saved slot
    holds them, and the server's largest resident size.

    kv_bytes_logged: None for a stock build, which does not print exact sizes. kv_bytes_slot: every layer's
    saved row bytes times its cells. peak_rss_bytes: the model's file included. ratio: to the baseline's
    cache. findings: where the sources disagree, a line each. layers: as computed, those that keep a cache.
    n_slot_tokens: tokens the slot held.
    """

    kv_bytes_logged: int | None
    kv_bytes_computed: int | None
    kv_bytes_slot: int | None
    peak_rss_bytes: int | None
    ratio: float | None = None
    findings: tuple[str, ...] = ()
    layers: tuple[LayerBytes, ...] = ()
    n_slot_tokens: int | None = None

    @property
    def kv_bytes(self) -> int | None:
        """The best known size: as logged, else as computed."""
        return self.kv_bytes_computed if self.kv_bytes_logged is None else self.kv_bytes_logged


@dataclass(frozen=True)
class PositionBin:
    """Mean KL of the tokens at positions ``first`` to ``last``, both included."""

    first: int
    last: int
    mean: float


@dataclass(frozen=True)
class Divergence:
    """Per-token KL divergence from the baseline, in nats, on one path.

    path: ``prefill`` or ``decode``. top1: share of tokens whose most likely token is the baseline's.
    delta_p_rms: of the probability of the token that follows. floor: the baseline against itself, and its
    interval.
    """

    path: str
    n_tokens: int
    mean: float | None
    interval: Interval | None
    median: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    max: float | None
    top1: Estimate
    delta_p_rms: float | None
    ppl_baseline: float | None
    ppl_policy: float | None
    floor: Floor | None = None
    by_position: tuple[PositionBin, ...] = ()

    @property
    def above_floor(self) -> float | None:
        """Mean KL less that of the baseline against itself, where that is known."""
        floor = self.floor.mean if self.floor is not None and self.floor.mean is not None else 0.0
        return None if self.mean is None else self.mean - floor


@dataclass(frozen=True)
class Floor:
    """Mean KL of the baseline against itself."""

    mean: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Speed:
    """Speed of one phase (``prefill``, ``decode``) with ``depth`` tokens in the cache: median over rounds.

    ratio: median over the rounds of the ratio to the baseline in the same round, with its interval.
    """

    phase: str
    depth: int
    tokens_per_second: float | None
    ratio: float | None
    interval: Interval | None
    n_rounds: int


@dataclass(frozen=True)
class Chat:
    """A fixed chat workload: median time to the first token, speed of the tokens after it."""

    ttft_seconds: float | None
    tokens_per_second: float | None
    n_turns: int
    n_prompt: int
    n_generated: int


@dataclass(frozen=True)
class Failure:
    """Something that went wrong. part: of the suite. log: file in the folder of the validation, None for
    none.
    """

    part: str
    what: str
    log: str | None = None


@dataclass(frozen=True)
class PolicyResult:
    """Everything about one policy. policy: canonical text, and behind an @ the beginning of the digest of its
    transform. repeat: the baseline asked a second time, paired with its first time; empty for the others.
    transform: of K before it is stored, null for none.
    """

    label: str
    policy: str
    verdict: Verdict
    reasons: tuple[str, ...]
    memory: Memory | None = None
    tasks: tuple[TaskRow, ...] = ()
    repeat: tuple[TaskRow, ...] = ()
    divergence: tuple[Divergence, ...] = ()
    speed: tuple[Speed, ...] = ()
    chat: Chat | None = None
    failures: tuple[Failure, ...] = ()
    transform: TransformUsed | None = None

    @property
    def total(self) -> TaskRow | None:
        """The row over all categories, None without answers."""
        return total_row(self.tasks)

    @property
    def ratio(self) -> float | None:
        """The size of the cache over the baseline's."""
        return None if self.memory is None else self.memory.ratio

    @property
    def worst_divergence(self) -> Divergence | None:
        """The path that lies furthest above its floor, which decides; None where none is measured."""
        return max(self.divergence, key=lambda path: path.above_floor or 0.0, default=None)

    def slowest(self, phase: str) -> Speed | None:
        """The depth at which a phase is slowest beside the baseline, None where no ratio is known."""
        known = [point for point in self.speed if point.phase == phase and point.ratio is not None]
        return min(known, key=lambda point: point.ratio or 0.0, default=None)


@dataclass(frozen=True)
class ValidationResult:
    """A whole validation. baseline: label of the policy the others are compared with."""

    model: ModelFile
    suite: SuiteUsed
    provenance: Mapping[str, Any]
    baseline: str
    policies: tuple[PolicyResult, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def compared(self) -> tuple[PolicyResult, ...]:
        """All policies but the baseline."""
        return tuple(policy for policy in self.policies if policy.label != self.baseline)


def parse_result(document: object, where: str) -> ValidationResult:
    """Build a result from its JSON form. Raises KVQuantError, one line, naming the value at fault."""
    version = document.get("schema_version") if isinstance(document, Mapping) else None
    if version != SCHEMA_VERSION:
        raise KVQuantError(f"{where}: schema version {version}, this kvquant reads {SCHEMA_VERSION}")
    return from_document(ValidationResult, document, where)


def read_result(path: Path) -> ValidationResult:
    """Read a result file. Raises KVQuantError when it is missing, damaged or of another version."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KVQuantError(f"{path}: cannot be read: {error.strerror}; kvquant validate writes it") from error
    return parse_result(parse_json(data, str(path)), str(path))
