"""The TOML file of a suite, a dataclass for each table; their fields are the keys (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from msgspec import Meta

from kvquant.evals.divergence import FeedPath

PATHS: tuple[FeedPath, ...] = ("prefill", "decode")
REFERENCE_TEXT = "reference"

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(gt=0, lt=1)]


@dataclass(frozen=True)
class Head:
    """``[suite]``. n: samples per category unless asked otherwise. max_tokens: length of an answer."""

    name: Text
    about: Text
    n: Count | None = None
    max_tokens: Count | None = None


@dataclass(frozen=True)
class Rules:
    """How what was measured becomes a verdict, ``[rules]`` (docs/evaluation.md).

    alpha: largest p that counts as a difference. power: chance of finding the minimum detectable effect.
    disagreement: least share of samples assumed to differ between two runs of equal quality. safe_loss: a
    loss of rate that does not matter. broken_loss: one from which a policy is called broken. safe_kl: mean KL
    above the floor, in nats, that does not matter. broken_kl: one from which a policy is called broken.
    safe_speed: ratio to the baseline's speed from which a policy is not called slower.
    """

    alpha: Share
    power: Share
    disagreement: Share
    safe_loss: Share
    broken_loss: Share
    safe_kl: Positive = 0.01
    broken_kl: Positive = 0.5
    safe_speed: Share = 0.9


@dataclass(frozen=True)
class CountedTask:
    """``[[test]]`` without the parameters of its task. weight: what always right adds to the quality."""

    task: Text
    category: Text
    weight: Positive
    name: Text | None = None


@dataclass(frozen=True)
class ServerPart:
    """``[server]``. n_ctx: its context, in tokens."""

    n_ctx: Count = 4096


@dataclass(frozen=True)
class DivergencePart:
    """KL divergence per token, ``[kld]``.

    text: ``reference`` for documents of the reference model's test split, else a UTF-8 file. n_documents and
    n_tokens: how many such documents, of how many of its tokens. n_ctx: tokens of a chunk. paths: how tokens
    are fed.
    """

    text: Text
    n_documents: Count = 16
    n_tokens: Count = 512
    n_ctx: Annotated[int, Meta(ge=8)] = 512
    paths: Annotated[tuple[FeedPath, ...], Meta(min_length=1)] = PATHS


@dataclass(frozen=True)
class SpeedPart:
    """llama-bench and chat timings, ``[speed]``.

    depths: tokens in the cache before the clock starts. n_prompt, n_gen: tokens timed. n_rounds: runs of each
    policy. n_chats: how often the fixed conversation is held.
    """

    depths: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)] = (0, 1024, 4096)
    n_prompt: Count = 256
    n_gen: Count = 32
    n_rounds: Count = 6
    n_chats: Annotated[int, Meta(ge=0)] = 1


@dataclass(frozen=True)
class MemoryPart:
    """``[memory]``, which has no keys."""


@dataclass(frozen=True)
class SuiteFile:
    """The whole file."""

    suite: Head
    rules: Rules
    test: tuple[Mapping[str, Any], ...] = ()
    server: ServerPart = field(default_factory=ServerPart)
    kld: DivergencePart | None = None
    speed: SpeedPart | None = None
    memory: MemoryPart | None = None


@dataclass(frozen=True)
class Parts:
    """What a suite asks of a policy besides its tests. n_ctx: context of the server. A part that is not asked
    for is None or False.
    """

    n_ctx: int
    divergence: DivergencePart | None
    speed: SpeedPart | None
    memory: bool

    @classmethod
    def of(cls, file: SuiteFile) -> Parts:
        """Take the parts of a file, paths and depths in order and each once."""
        kld, speed = file.kld, file.speed
        return cls(
            n_ctx=file.server.n_ctx,
            divergence=kld and replace(kld, paths=tuple(path for path in PATHS if path in kld.paths)),
            speed=speed and replace(speed, depths=tuple(sorted(set(speed.depths)))),
            memory=file.memory is not None,
        )

    @property
    def any(self) -> bool:
        """Whether the suite asks for anything besides its tests."""
        return self.memory or self.divergence is not None or self.speed is not None
