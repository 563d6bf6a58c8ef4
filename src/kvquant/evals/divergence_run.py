"""A divergence measurement as a whole: policies planned, measured into a folder that can be resumed, summed
up.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvquant.documents import read_json, to_document, write_json
from kvquant.errors import KVQuantError, LlamaError, UsageError
from kvquant.evals.append_only import alone_in
from kvquant.evals.divergence import PROGRAM, CacheSetup, DivergenceRequest, FeedPath
from kvquant.evals.divergence_log import TokenLog, measure_into, open_token_log
from kvquant.evals.divergence_summary import DivergenceSummary, summarize_divergence
from kvquant.evals.machine import read_machine
from kvquant.evals.validation.plan import BASELINE, planned_policy
from kvquant.evals.validation.records import folder_name
from kvquant.evals.variations import UNROTATED, split_variations
from kvquant.llama.build import read_info
from kvquant.memory import ContextOptions, memory_of
from kvquant.model.gguf_file import GgufModel
from kvquant.model.gguf_header import Array
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy
from kvquant.results.comparison import Interval
from kvquant.results.divergence import (
    SCHEMA_VERSION,
    DivergenceResult,
    FileUsed,
    Floor,
    PolicyDivergence,
    Start,
)
from kvquant.shipped import VERSION
from kvquant.transform import TransformFile, cache_key

START = "start.json"
RESULT = "divergence.json"
PROGRAM_LOG = "program.log"

FLOOR_CHUNKS = 2
"""Chunks on which the floor is measured: the other path can be many times slower."""

MEMORY_SHARE = 0.5
"""Of the memory that is available, what contexts may take that are kept from chunk to chunk."""


@dataclass(frozen=True)
class PolicyPlan:
    """A policy as it is shown, as the program gets it, and what its cache takes for one chunk."""

    label: str
    setup: CacheSetup
    kv_bytes: int
    of_f16: float


@dataclass(frozen=True)
class DivergencePlan:
    """What will be measured. n_tokens: scored tokens at most, None for all of the texts."""

    programs: Path
    model: GgufModel
    shape: ModelShape
    texts: tuple[Path, ...]
    path: FeedPath
    n_ctx: int
    n_tokens: int | None
    policies: tuple[PolicyPlan, ...]
    n_threads: int | None = None
    n_jobs: int = 1

    @property
    def baseline(self) -> CacheSetup:
        """What the policies are compared with: float16 everywhere."""
        return CacheSetup(BASELINE, path=self.path)

    def request(self) -> DivergenceRequest:
        """Return what is asked of the program: the floor first, then the policies."""
        setups = (self.baseline.on_the_other_path(FLOOR_CHUNKS), *(plan.setup for plan in self.policies))
        return DivergenceRequest(
            model=self.model.path,
            texts=self.texts,
            policies=setups,
            baseline=self.baseline,
            n_ctx=self.n_ctx,
            n_tokens=self.n_tokens,
            n_threads=self.n_threads,
            n_jobs=self.n_jobs,
            n_contexts=contexts_kept(
                self.model, self.n_ctx, max((plan.kv_bytes for plan in self.policies), default=0), len(setups)
            ),
        )


def contexts_kept(model: GgufModel, n_ctx: int, kv_bytes: int, n_policies: int) -> int:
    """Return how many policies may keep their contexts from chunk to chunk, each a cache of ``kv_bytes``.

    All where their memory is there, else none: one that is made for each chunk costs little.
    """
    available = read_machine().available_n_bytes
    tokens = model.header.values.get("tokenizer.ggml.tokens")
    n_vocab = tokens.n if isinstance(tokens, Array) else 0
    # The logits of a batch, once where they are computed and once where they are given out.
    each = kv_bytes + 2 * 4 * n_vocab * min(n_ctx, 512)
    return n_policies if available is not None and n_policies * each < MEMORY_SHARE * available else 0


def plan_policies(
    texts: Sequence[str],
    shape: ModelShape,
    n_ctx: int,
    path: FeedPath,
    *,
    rotation: bool,
    transforms: Sequence[TransformFile] = (),
) -> tuple[PolicyPlan, ...]:
    """Read policies and fit them to a model; ``@no-rotation`` after one, or rotation=False for all, leaves
    the rotation out. Each policy is measured with each of the transforms, those of the baseline's types and
    those with ``@no-transform`` behind them without. Raises UsageError or PolicyError, one line, for one that
    will not do.
    """
    options = ContextOptions(n_ctx, 1)
    f16 = memory_of(shape, parse_policy(BASELINE).resolve(shape), options).kv_bytes
    plans: dict[CacheSetup, PolicyPlan] = {}
    for text in texts:
        varied = split_variations(text)
        planned = planned_policy(varied.policy, shape, options)
        rotated = rotation and varied.rotation
        plain = not varied.transform or planned.text == BASELINE
        n_bytes = memory_of(shape, planned.policy.resolve(shape), options).kv_bytes
        for transform in (None,) if plain or not transforms else transforms:
            setup = CacheSetup(planned.text, rotation=rotated, path=path, transform=transform)
            if setup in plans:
                raise UsageError(f"--policy {text}: {setup.policy} is given twice; give each policy once")
            label = f"{planned.label}@{transform.path.stem}" if transform else planned.label
            label += "" if rotated else f"@{UNROTATED}"
            plans[setup] = PolicyPlan(label, setup, n_bytes, n_bytes / f16 if f16 else 1.0)
    return tuple(plans.values())


def run_divergence(
    plan: DivergencePlan,
    folder: Path,
    argv: Sequence[str],
    on_chunk: Callable[[int, int], None] = lambda _done, _planned: None,
) -> DivergenceResult:
    """Measure what is not in the folder yet and return the result, which is in the folder too.

    Policies that the folder holds besides those of the plan stay as they are. A policy that fails is part of
    the result. Raises UsageError when the folder holds a measurement of something else or another kvquant
    works in it, LlamaError when every policy fails, KVQuantError when it cannot be written; what was measured
    by then is kept.
    """
    begun, started = time.monotonic(), datetime.now(UTC)
    start = start_of(plan)
    request = plan.request()
    with alone_in(folder), ExitStack() as stack:
        try:
            _check_same(folder, start)
            paths = [_log_path(folder, "floor", plan.path)]
            paths += [_log_path(folder, _file_name(policy.setup), plan.path) for policy in plan.policies]
            logs = [stack.enter_context(open_token_log(path)) for path in paths]
            failures = measure_into(plan.programs, request, logs, folder / PROGRAM_LOG, on_chunk)
        except OSError as error:
            raise KVQuantError(
                f"cannot work in {folder}: {error.strerror or error}; measurements are kept"
            ) from error
        if len(failures) == len(logs):
            raise LlamaError(f"{failures[0]} (log: {folder / PROGRAM_LOG})")
        if not failures:
            (folder / PROGRAM_LOG).unlink(missing_ok=True)
        provenance = {
            "argv": list(argv),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - begun, 1),
            "kvquant_version": VERSION,
            "n_threads": plan.n_threads,
            "n_jobs": plan.n_jobs,
            "machine": to_document(read_machine()),
        }
        result = _result(plan, start, logs, failures, provenance)
        write_json(folder / RESULT, result)
    return result


def start_of(plan: DivergencePlan) -> Start:
    """Describe what a plan measures. Raises KVQuantError for a file that cannot be read."""
    build = read_info(plan.programs.parent)
    return Start(
        SCHEMA_VERSION,
        file_used(plan.model.path, plan.model.sha256()),
        tuple(file_used(text) for text in plan.texts),
        plan.path,
        plan.n_ctx,
        plan.n_tokens,
        None if build is None else (build.commit, build.series_digest),
    )


def check_programs(programs: Path) -> None:
    """Raise LlamaError when the folder has no llama-kv-divergence."""
    if not (programs / PROGRAM).is_file():
        raise LlamaError(f"there is no {PROGRAM} in {programs}; kvquant llama build makes one")


def _check_same(folder: Path, start: Start) -> None:
    path = folder / START
    if not path.exists():
        write_json(path, start)
        return
    old = to_document(read_json(Start, path))
    for name, value in to_document(start).items():
        if old[name] != value:
            words = {"n_ctx": "context", "n_tokens": "number of tokens", "build": "build of llama.cpp"}
            raise UsageError(
                f"{folder} contains a measurement with another {words.get(name, name)}; give another --out"
            )


def _result(
    plan: DivergencePlan,
    start: Start,
    logs: Sequence[TokenLog],
    failures: Mapping[int, str],
    provenance: dict[str, Any],
) -> DivergenceResult:
    summaries = [
        None if index in failures else summarize_divergence(log.tokens) for index, log in enumerate(logs)
    ]
    measured = [summary for summary in summaries[1:] if summary is not None]
    return DivergenceResult(
        schema_version=SCHEMA_VERSION,
        start=start,
        baseline=BASELINE,
        baseline_perplexity=measured[0].ppl_baseline if measured else None,
        n_tokens=max((summary.n_tokens for summary in measured), default=0),
        floor=_floor(summaries[0]),
        policies=tuple(
            _policy(policy, summary, failures.get(index))
            for index, (policy, summary) in enumerate(zip(plan.policies, summaries[1:], strict=True), start=1)
        ),
        provenance=provenance,
    )


def _floor(summary: DivergenceSummary | None) -> Floor | None:
    if summary is None:
        return None
    low, high = _bounds(summary.interval)
    return Floor(summary.mean, low, high, summary.n_tokens)


def _policy(plan: PolicyPlan, summary: DivergenceSummary | None, failure: str | None) -> PolicyDivergence:
    empty = PolicyDivergence(
        policy=plan.setup.policy,
        label=plan.label,
        rotation=plan.setup.rotation,
        transform=None if plan.setup.transform is None else plan.setup.transform.used,
        **dict.fromkeys(("kl_mean", "kl_low", "kl_high", "kl_median", "kl_p99", "kl_max")),
        **dict.fromkeys(("top1", "top1_low", "top1_high", "perplexity")),
        kv_bytes=plan.kv_bytes,
        of_f16=plan.of_f16,
        n_tokens=0,
        failure=failure,
    )
    if summary is None:
        return empty
    kl_low, kl_high = _bounds(summary.interval)
    top1_low, top1_high = _bounds(summary.top1.interval)
    return replace(
        empty,
        kl_mean=summary.mean,
        kl_low=kl_low,
        kl_high=kl_high,
        kl_median=summary.median,
        kl_p99=summary.p99,
        kl_max=summary.max,
        top1=summary.top1.value,
        top1_low=top1_low,
        top1_high=top1_high,
        perplexity=summary.ppl_policy,
        n_tokens=summary.n_tokens,
    )


def _bounds(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _file_name(setup: CacheSetup) -> str:
    return folder_name(cache_key(setup.policy, setup.transform)) + ("" if setup.rotation else f"@{UNROTATED}")


def _log_path(folder: Path, name: str, path: FeedPath) -> Path:
    return folder / "tokens" / f"{name}.{path}.jsonl"


def file_used(path: Path, sha256: str | None = None) -> FileUsed:
    """Describe a file; sha256 where it is known. Raises KVQuantError for one that cannot be read."""
    if sha256 is not None:
        return FileUsed(path.name, sha256)
    try:
        with path.open("rb") as file:
            return FileUsed(path.name, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise KVQuantError(f"{path}: cannot be read: {error.strerror}") from error
