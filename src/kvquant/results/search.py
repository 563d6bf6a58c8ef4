"""What a search by measured KL finds out (`kvquant search --text`): a policy, its costs and its rivals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvquant.results.comparison import Interval
from kvquant.results.divergence import FileUsed
from kvquant.results.transform import TransformUsed
from kvquant.results.validation import Speed

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SearchStart:
    """What a folder measures; the same for every start in it.

    fit, held_out: the text that policies are chosen on and the one that they are compared on. n_ctx: tokens
    of a chunk. score_from: first position of a chunk that is scored. transform: the exact change of K that
    every policy is measured with, None without. build: commit and series digest of the programs.
    """

    schema_version: int
    model: FileUsed
    fit: FileUsed
    held_out: FileUsed
    n_ctx: int
    score_from: int
    rotation: bool
    transform: TransformUsed | None
    build: tuple[str | None, str | None] | None


@dataclass(frozen=True)
class Kl:
    """Mean KL divergence from a float16 cache over n_tokens scored tokens, nats, with its 95 % interval."""

    mean: float
    interval: Interval | None
    n_tokens: int


@dataclass(frozen=True)
class SideCost:
    """What one type on one side of one layer costs, everything else in f16.

    side: k, v, or kv where V is a part of K. kl: as measured, null where it was not. cost: nats that the
    choice counts with: above the floor, with the noise of the measurement taken out, or scaled from the
    coarsest type by the error of the formats.
    """

    layer: int
    side: str
    type: str
    kl: Kl | None
    cost: float


@dataclass(frozen=True)
class MeasuredPolicy:
    """A policy of the comparison.

    kind: chosen (of the budget), front (of another budget), candidate (measured on the way), rival, or
    random. how: what it was built by. kv_bytes: of n_ctx tokens; of_f16: their share of f16. predicted: the
    sum of its sides' costs and the floor, nats, null where a type has no cost.
    """

    kind: str
    name: str
    policy: str
    how: str
    kv_bytes: int
    of_f16: float
    predicted: float | None
    kl_fit: Kl | None
    kl_held_out: Kl | None


@dataclass(frozen=True)
class LeftOut:
    """A rival that is not in the comparison, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Additivity:
    """How far sums of single costs predict policies measured on the fitting text.

    ratio: median of measured above predicted. rank_correlation: Spearman's, null for fewer than three.
    """

    n_policies: int
    ratio: float | None
    rank_correlation: float | None


@dataclass(frozen=True)
class RandomPolicies:
    """KL on the held-out text of random policies of nearly the same bytes, measured on n_tokens."""

    n: int
    mean: float
    best: float
    n_tokens: int


@dataclass(frozen=True)
class Against:
    """The policy against its best rival on the same held-out tokens: KL of the policy minus KL of the rival.

    verdict: better, level (the interval of the difference holds 0, or is unknown) or worse.
    """

    rival: str
    difference: float
    interval: Interval | None
    verdict: str


@dataclass(frozen=True)
class TypeSpeed:
    """How fast a type decodes when K and V of every layer have it; the ratio is to f16 in the same rounds."""

    type: str
    decode: Speed


@dataclass(frozen=True)
class SearchResult:
    """The result document.

    policy: canonical text; simple: the name of the rule where no choice by measurement was found to be better
    than it. n_ctx: tokens that bytes are counted for. budget_bytes: what it had to fit, null for a limit of
    KL. max_kl: the limit on the fitting text, nats. floor: how far a float16 cache is from itself when the
    order of its sums changes. floor_line: what a change at layer 0 costs of that, nats, and how that changes
    with each layer. costs_from: measurement, reverse (each side the only one in f16; kl of a side is of that
    policy) or capture. proxy_rank_correlation: Spearman's, of the attention-output error of a capture with
    the measured costs (sides) or, where these were not measured, with the KL of the policies; null without a
    capture. sentence: the result in words. command: of llama-server with the policy, for one sequence.
    min_speed: the share of f16's decode that a type had to reach to be used, null where speed did not
    matter. speeds: what each reached.
    """

    schema_version: int
    start: SearchStart
    types: tuple[str, ...]
    policy: str
    simple: str | None
    n_ctx: int
    budget_bytes: int | None
    max_kl: float | None
    kv_bytes: int
    kv_bytes_f16: int
    of_f16: float
    kl_fit: Kl | None
    kl_held_out: Kl | None
    against: Against | None
    floor: Kl
    floor_line: tuple[float, float]
    costs_from: str
    proxy_rank_correlation: float | None
    sides: tuple[SideCost, ...]
    additivity: Additivity
    front: tuple[MeasuredPolicy, ...]
    candidates: tuple[MeasuredPolicy, ...]
    rivals: tuple[MeasuredPolicy, ...]
    left_out: tuple[LeftOut, ...]
    random: RandomPolicies | None
    sentence: str
    command: str
    provenance: dict[str, Any]
    min_speed: float | None = None
    speeds: tuple[TypeSpeed, ...] = ()
