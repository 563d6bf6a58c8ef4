"""What a sweep finds out (`kvquant sweep`): cells, context probes, and the table that engineers decide from.

A cell is one server under one setting. Bytes are bytes, rates tokens per second, times seconds. Whatever a
machine, a log or an endpoint does not tell is None, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 1

TRANSFORMED = "with transform"

ALL_CPUS = "all"
"""Every core the system gives: the server is not bound."""


class Ending(StrEnum):
    """How a cell or a probe ended.

    DONE: measured. REFUSED: llama.cpp takes no such setting. NO_MEMORY: it would have taken, or took, more
    than the guard allows. CRASHED: the server ended. TIMED_OUT: no answer in time. FAILED: anything else.
    LOST: the worker that ran it is gone; it is run again.
    """

    DONE = "done"
    REFUSED = "refused"
    NO_MEMORY = "no memory"
    CRASHED = "crashed"
    TIMED_OUT = "timed out"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True)
class Setting:
    """What a server is started with, or which endpoint is asked.

    model: as the plan names it; an endpoint by its name. policy: canonical text, None for an endpoint.
    n_threads: None leaves it to llama.cpp. cpus: numbers as taskset takes them, or a name (all, big, little).
    n_ctx: tokens of one sequence. base_url: of an endpoint. transform: a file of `kvquant calibrate`, as the
    plan names it.
    """

    model: str
    policy: str | None
    n_threads: int | None
    cpus: str
    flash_attn: str
    n_ctx: int
    base_url: str | None = None
    transform: str | None = None

    @property
    def variant(self) -> str | None:
        """The policy, and whether a transform comes with it: what a row of the table is of."""
        return self.policy if self.transform is None else f"{self.policy} {TRANSFORMED}"


@dataclass(frozen=True)
class SpeedAt:
    """Speed with ``depth`` tokens in the cache.

    prefill: of the n_prompt tokens that follow. decode: of the n_gen tokens made after those. ttft_seconds:
    from sending a prompt of depth + n_prompt tokens, none of them cached, to its first token. cpu_share: the
    processor time that the server's threads had of what they could have had; well below 1, other programs
    ran. None where the answer came too soon to tell.
    """

    depth: int
    n_prompt: int
    prefill: float | None
    n_gen: int
    decode: float | None
    ttft_seconds: float | None
    cpu_share: float | None = None


@dataclass(frozen=True)
class Buffers:
    """What the server's log says it allocated; llama.cpp rounds to 0.01 MiB, but for kv of a patched
    build.
    """

    model: int | None
    kv: int | None
    recurrent: int | None
    compute: int | None
    output: int | None

    @property
    def total(self) -> int | None:
        """Host memory in all, None where the log did not say."""
        known = (self.model, self.kv, self.compute)
        if any(part is None for part in known):
            return None
        return sum(part or 0 for part in (*known, self.recurrent, self.output))


@dataclass(frozen=True)
class Conditions:
    """A board at one moment.

    celsius: by sensor. core_khz: by core. clocks_hz: of devices such as the memory controller (dmc). cooling:
    state of each cooling device, 0 for none. load: average number of programs that ran in the last minute.
    """

    time: str
    celsius: Mapping[str, float]
    core_khz: Mapping[str, int]
    clocks_hz: Mapping[str, int | None]
    cooling: Mapping[str, int]
    available_n_bytes: int | None
    load: float | None


@dataclass(frozen=True)
class Watched:
    """The extremes while a cell ran. throttled: a cooling device went up or a sensor reached its limit."""

    n_samples: int
    max_celsius: float | None
    min_available_n_bytes: int | None
    min_core_khz: int | None
    throttled: bool | None


@dataclass(frozen=True)
class CellRecord:
    """One cell. round: from 0. cores: those the server was bound to, None for all. detail: why it is not
    done.

    warmup_tokens: processed before the clock. cooled_seconds: waited for the temperature before.
    """

    board: str
    setting: Setting
    round: int
    ending: Ending
    detail: str
    started: str
    wall_seconds: float
    points: tuple[SpeedAt, ...] = ()
    buffers: Buffers | None = None
    peak_rss_bytes: int | None = None
    load_seconds: float | None = None
    warmup_tokens: int = 0
    cooled_seconds: float = 0.0
    page_cache_dropped: bool = False
    cores: str | None = None
    before: Conditions | None = None
    after: Conditions | None = None
    watched: Watched | None = None

    @property
    def key(self) -> str:
        """Which cell of a plan this is."""
        return cell_key(self.setting, self.round)

    def at(self, depth: int) -> SpeedAt | None:
        """The speed at a depth, None where it was not measured."""
        return next((point for point in self.points if point.depth == depth), None)


@dataclass(frozen=True)
class Attempt:
    """One try of a probe. part: load or answer. trial: which of the questions. n_prompt: tokens of the
    text.
    """

    n_ctx: int
    part: str
    trial: int
    ok: bool
    detail: str
    n_prompt: int | None
    seconds: float


@dataclass(frozen=True)
class ProbeRecord:
    """How long a context a model has under a policy on a board.

    loaded: the longest that loads. answered: the longest in which facts at the start, in the middle and at
    the end are all recalled. stable: the longest in which they are, ``times`` times in a row. predicted: the
    longest that `kvquant memory` allows within the memory that was free, less the reserve. trained: the
    model's own. limit: the longest that was tried. need_n_bytes: weights and caches at the stable context, as
    computed.
    """

    board: str
    setting: Setting
    ending: Ending
    detail: str
    started: str
    wall_seconds: float
    times: int
    limit: int
    trained: int | None
    available_n_bytes: int | None
    reserve_n_bytes: int
    predicted: int | None
    loaded: int | None = None
    answered: int | None = None
    stable: int | None = None
    need_n_bytes: int | None = None
    attempts: tuple[Attempt, ...] = ()
    before: Conditions | None = None

    @property
    def key(self) -> str:
        """Which probe of a plan this is."""
        return probe_key(self.setting)


def cell_key(setting: Setting, index: int) -> str:
    """Name a cell within a plan; its board is not part of it."""
    return f"cell {_words(setting)} ctx={setting.n_ctx} round={index}"


def probe_key(setting: Setting) -> str:
    """Name a probe within a plan."""
    return f"probe {_words(setting)}"


def _words(setting: Setting) -> str:
    return (
        f"{setting.model} {setting.policy or setting.base_url} threads={setting.n_threads or 'auto'} "
        f"cpus={setting.cpus} fa={setting.flash_attn}"
        + ("" if setting.transform is None else f" transform={setting.transform}")
    )


@dataclass(frozen=True)
class SweptModel:
    """A model file. name: as the plan names it. bits_per_weight: over all tensors."""

    name: str
    title: str
    sha256: str
    n_bytes: int
    bits_per_weight: float | None
    arch: str
    n_ctx_train: int | None


@dataclass(frozen=True)
class Board:
    """A machine that runs cells. series_digest: of the patches in its programs. cores: by name, as taskset
    takes them. warnings: what would make its timings worth less.
    """

    name: str
    kvquant_version: str
    llama_tag: str | None
    series_digest: str | None
    cores: Mapping[str, str]
    machine: Mapping[str, Any]
    models: tuple[SweptModel, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quality:
    """What earlier folders say of a model under a policy. rates: shares of right answers, in all and of tool
    calls. weighted, wall_seconds and composite: of a suite, as `kvquant rank` has them. kl: mean, nats a
    token. source: the folders' names.
    """

    suite: str | None = None
    n: int | None = None
    rate: float | None = None
    tool_rate: float | None = None
    weighted: float | None = None
    wall_seconds: float | None = None
    composite: float | None = None
    kl: float | None = None
    source: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecisionRow:
    """A model under a policy on a board, with the threads, cores and flash attention that decode fastest at
    depth.

    transform: what the plan names, None for none. policy_digest: SHA-256 of its canonical text, first 16
    digits; quality is joined by it and the model's sha256. depth: the deepest all of the model's policies
    were measured at. Rates are medians over rounds. decode_ratio: to the first policy in the same rounds and
    otherwise the same setting, median. compute_bytes: with the output buffer. pareto: no other row of the
    board is as good in everything known and better in something (decode at depth, host memory, quality).
    n_cells: measured; problems: of the others, by ending. source: where a row comes from that was not
    measured here.
    """

    board: str
    model: str
    policy: str
    label: str
    sha256: str | None = None
    transform: str | None = None
    policy_digest: str | None = None
    n_threads: int | None = None
    cpus: str | None = None
    flash_attn: str | None = None
    n_ctx: int | None = None
    depth: int | None = None
    prefill_0: float | None = None
    decode_0: float | None = None
    prefill_deep: float | None = None
    decode_deep: float | None = None
    decode_ratio: float | None = None
    ttft_seconds: float | None = None
    cpu_share: float | None = None
    loaded_ctx: int | None = None
    answered_ctx: int | None = None
    stable_ctx: int | None = None
    predicted_ctx: int | None = None
    file_bytes: int | None = None
    bits_per_weight: float | None = None
    model_bytes: int | None = None
    kv_bytes: int | None = None
    compute_bytes: int | None = None
    host_bytes: int | None = None
    peak_rss_bytes: int | None = None
    max_celsius: float | None = None
    quality: Quality = field(default_factory=Quality)
    pareto: bool | None = None
    n_cells: int = 0
    problems: Mapping[str, int] = field(default_factory=dict)
    source: str | None = None

    @property
    def variant(self) -> str:
        """The policy, and whether a transform comes with it."""
        return self.policy if self.transform is None else f"{self.policy} {TRANSFORMED}"


@dataclass(frozen=True)
class Choice:
    """Which model and policy to take for a job within an amount of memory, None where nothing fits or is
    known.

    why: what decided.
    """

    job: str
    ram_bytes: int | None
    board: str | None
    model: str | None
    policy: str | None
    why: str


@dataclass(frozen=True)
class SweepResult:
    """The result document. rows: a line of the decision table each, published ones last."""

    plan: Mapping[str, Any]
    boards: tuple[Board, ...]
    rows: tuple[DecisionRow, ...]
    choices: tuple[Choice, ...]
    cells: tuple[CellRecord, ...]
    probes: tuple[ProbeRecord, ...]
    provenance: Mapping[str, Any]
    schema_version: int = SCHEMA_VERSION


def leading_rows(rows: Iterable[DecisionRow]) -> list[DecisionRow]:
    """Return, for each board and model, the row to take: the longest stable context first, then the Pareto
    front, then the fastest decode at depth. Rows without a speed, and those of others, are left out.
    """
    found: dict[tuple[str, str], DecisionRow] = {}
    for row in rows:
        if row.source is not None or row.decode_deep is None:
            continue
        best = found.get((row.board, row.model))
        if best is None or _merit(row) > _merit(best):
            found[row.board, row.model] = row
    return list(found.values())


def _merit(row: DecisionRow) -> tuple[int, bool, float]:
    return row.stable_ctx or 0, row.pareto is not False, row.decode_deep or 0.0
