"""The result of a validation, as ``results.json``, `kvquant validate --json` and `kvquant compare DIR --json`
hold it.

Every number that is not known is None, never 0. A ratio is that of the policy to the baseline. Intervals are
(low, high) at 95 %.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from kvquant.errors import KVQuantError
from kvquant.evals.validation.documents import from_document, to_document
from kvquant.files import write_atomic

SCHEMA_VERSION = 1

Interval = tuple[float, float]


class Verdict(StrEnum):
    """What the rules of a suite make of everything that was measured of a policy (docs/evaluation.md)."""

    BASELINE = "baseline"
    SAFE = "safe"
    COSTS = "costs"
    BROKEN = "broken"
    CANNOT_TELL = "cannot tell"
    FAILED = "failed"


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
class Estimate:
    """A number and how sure it is."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Rate:
    """A share of right answers."""

    rate: float | None
    interval: Interval | None


@dataclass(frozen=True)
class TaskRow:
    """One category, or ``total``, of a policy paired with the baseline: `kvquant.evals.compare.Paired`."""

    category: str
    n: int
    n_both: int
    n_lost: int
    n_gained: int
    baseline: Rate
    other: Rate
    change: Estimate
    p: float
    p_holm: float
    minimum_detectable_effect: float | None
    verdict: str


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
    holds them, and the server's largest resident size. ratio: of the logged bytes. findings: where these
    sources disagree. layers: as computed, those that keep a cache.
    """

    kv_bytes_logged: int | None
    kv_bytes_computed: int | None
    kv_bytes_slot: int | None
    peak_rss_bytes: int | None
    ratio: float | None = None
    findings: tuple[str, ...] = ()
    layers: tuple[LayerBytes, ...] = ()


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
    """Everything about one policy. policy: canonical text. repeat: the baseline asked a second time, paired
    with its first time; empty for the others.
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


@dataclass(frozen=True)
class ValidationResult:
    """A whole validation. baseline: label of the policy the others are compared with."""

    model: ModelFile
    suite: SuiteUsed
    provenance: Mapping[str, Any]
    baseline: str
    policies: tuple[PolicyResult, ...]
    schema_version: int = field(default=SCHEMA_VERSION)

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return to_document(self)


def parse_result(document: object, where: str) -> ValidationResult:
    """Build a result from its JSON form. Raises KVQuantError, one line, naming the value at fault."""
    version = document.get("schema_version") if isinstance(document, Mapping) else None
    if version != SCHEMA_VERSION:
        raise KVQuantError(f"{where}: schema version {version}, this kvquant reads {SCHEMA_VERSION}")
    return from_document(ValidationResult, document, where)


def read_result(path: Path) -> ValidationResult:
    """Read a result file. Raises KVQuantError when it is missing, damaged or of another version."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise KVQuantError(f"{path}: cannot be read: {error.strerror}; kvquant validate writes it") from error
    except ValueError as error:
        raise KVQuantError(f"{path}: is not JSON; kvquant validate writes it again") from error
    return parse_result(document, str(path))


def write_result(path: Path, result: ValidationResult) -> None:
    """Write a result file whole, or leave the old one."""
    write_atomic(path, json.dumps(result.document(), indent=1, allow_nan=False) + "\n")
