"""What a divergence measurement finds out (`kvquant divergence`): how far policies move predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvquant.results.transform import TransformUsed

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FileUsed:
    """A file by its name and content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Start:
    """What a folder measures; the same for every start in it.

    build: commit and series digest of the programs, None where nothing is known of them.
    """

    schema_version: int
    model: FileUsed
    texts: tuple[FileUsed, ...]
    path: str
    n_ctx: int
    n_tokens: int | None
    build: tuple[str | None, str | None] | None


@dataclass(frozen=True)
class Floor:
    """How far the baseline is from itself on the other path: what the order of sums alone makes, nats."""

    kl_mean: float
    kl_low: float | None
    kl_high: float | None
    n_tokens: int


@dataclass(frozen=True)
class PolicyDivergence:
    """What a policy does to the predictions of a model.

    policy: canonical text. kl_mean: KL divergence from the baseline, nats a token, kl_low to kl_high its 95 %
    interval, null where the text is too short for one; kl_median, kl_p99, kl_max over the tokens. top1: share
    of tokens for which both hold the same token to be the most likely, with its interval. perplexity: of the
    text under the policy. kv_bytes: what llama.cpp allocates for one sequence of n_ctx tokens; of_f16: their
    share of a float16 cache's. failure: why there are no numbers. transform: of K, null for none.
    """

    policy: str
    label: str
    rotation: bool
    kl_mean: float | None
    kl_low: float | None
    kl_high: float | None
    kl_median: float | None
    kl_p99: float | None
    kl_max: float | None
    top1: float | None
    top1_low: float | None
    top1_high: float | None
    perplexity: float | None
    kv_bytes: int
    of_f16: float
    n_tokens: int
    failure: str | None = None
    transform: TransformUsed | None = None


@dataclass(frozen=True)
class DivergenceResult:
    """The result document. n_tokens: scored tokens. baseline_perplexity: of the float16 cache on the same
    text.
    """

    schema_version: int
    start: Start
    baseline: str
    baseline_perplexity: float | None
    n_tokens: int
    floor: Floor | None
    policies: tuple[PolicyDivergence, ...]
    provenance: dict[str, Any]
