"""What a calibration finds out (`kvquant calibrate`): what each layer is given, and whether it helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvquant.results.comparison import Interval
from kvquant.results.divergence import FileUsed
from kvquant.results.transform import TransformUsed

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerCalibration:
    """A layer whose keys the policy quantizes. kind: what it is given, "none" for nothing. gain_db: by kind,
    how much less squared logit error the fit predicts than from no transform, in dB; 6 dB are a bit a value.
    """

    layer: int
    kind: str
    gain_db: Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """Something that was tried on the part of the text that chooses: mean KL from a float16 cache, nats a
    token. name: a kind in all layers, or what it changes of the one before. taken: it became the choice.
    """

    name: str
    kl_mean: float
    taken: bool


@dataclass(frozen=True)
class DepthKL:
    """Mean KL of held-out tokens at positions ``first`` to ``last`` of their chunks, both included."""

    first: int
    last: int
    without: float
    with_transform: float


@dataclass(frozen=True)
class Judgement:
    """The policy on text that neither fit nor choice has seen, with and without the transform.

    kl_without, kl_with: mean KL from a float16 cache, nats a token. change: the 95 % interval of the
    difference, with minus without; null where the text is too short for one. better: the whole interval is
    below 0.
    """

    n_tokens: int
    kl_without: float
    kl_with: float
    change: Interval | None
    by_depth: tuple[DepthKL, ...]
    better: bool


@dataclass(frozen=True)
class CalibrationResult:
    """The result document.

    n_ctx: the deepest position. contexts: tokens of the chunks that were fitted on, with how many tokens in
    all. policy: what kinds were judged with. kind: what was asked for. written: the file, null where the
    check said no. seconds: by step.
    """

    model: FileUsed
    text: FileUsed
    build: tuple[str | None, str | None] | None
    n_ctx: int
    contexts: Mapping[str, int]
    policy: str
    kind: str
    layers: tuple[LayerCalibration, ...]
    trials: tuple[Trial, ...]
    judgement: Judgement
    transform: TransformUsed | None
    seconds: Mapping[str, float]
    provenance: Mapping[str, Any]
    schema_version: int = SCHEMA_VERSION
