"""Divergence of transforms that are tried, on a part of the text, kept in a folder that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from kvquant.errors import KVQuantError, UsageError
from kvquant.evals.calibration.plan import CalibrationPlan
from kvquant.evals.calibration.recipes import Assignment, Fitted, transform_of
from kvquant.evals.calibration.search import Measured, measured_of
from kvquant.evals.divergence import CacheSetup, DivergenceRequest, TokenDivergence
from kvquant.evals.divergence_log import measure_into, open_token_log
from kvquant.evals.divergence_run import contexts_kept
from kvquant.evals.validation.records import folder_name
from kvquant.memory import ContextOptions, memory_of
from kvquant.policy import parse_policy
from kvquant.results.calibration import DepthKL
from kvquant.transform import ModelId, TransformFile, cache_key, transform_file, write_transform

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Given what begins, gives what is told how many of how many pieces are done."""

N_DEPTHS = 4


@dataclass(frozen=True)
class Bench:
    """Measures assignments on a part of the text; what a folder holds already is not measured again."""

    plan: CalibrationPlan
    work: Path
    fitted: Fitted
    model: ModelId
    provenance: Mapping[str, str | int | float]
    progress: Progress

    def measure(self, stage: str, text: Path, given: Sequence[Assignment]) -> list[Measured]:
        return [measured_of(tokens) for tokens in self.tokens(stage, text, given, self.plan.n_chunks)]

    def tokens(
        self, stage: str, text: Path, given: Sequence[Assignment], n_chunks: int
    ) -> list[list[TokenDivergence]]:
        """Return the scored tokens of each. Raises KVQuantError when one cannot be measured."""
        plan = self.plan
        setups = [CacheSetup(plan.policy, n_chunks=n_chunks, transform=self._file(one)) for one in given]
        different = tuple(dict.fromkeys(setups))
        options = ContextOptions(plan.n_ctx, 1)
        kv_bytes = memory_of(plan.shape, parse_policy(plan.policy).resolve(plan.shape), options).kv_bytes
        request = DivergenceRequest(
            model=plan.model.path,
            texts=(text,),
            policies=different,
            n_ctx=plan.n_ctx,
            score_from=plan.first_scored,
            every=max(1, plan.n_ctx // 1024),
            n_threads=plan.n_threads,
            n_contexts=contexts_kept(plan.model, plan.n_ctx, kv_bytes, len(different)),
        )
        log = self.work / f"{stage}.log"
        with ExitStack() as stack:
            paths = [self._log(stage, setup) for setup in different]
            logs = [stack.enter_context(open_token_log(path)) for path in paths]
            told = stack.enter_context(self.progress(stage))
            failures = measure_into(plan.programs, request, logs, log, told)
        for what in failures.values():
            if "nothing to score" in what:
                raise self._too_short(stage)
            raise KVQuantError(f"{stage}: {what} (log: {log})")
        # A text that ends early is scored as deep as it goes, which is not what was asked for.
        if max(token.position for token in logs[0].tokens) < plan.n_ctx - 1 - request.every:
            raise self._too_short(stage)
        log.unlink(missing_ok=True)
        found = {setup: kept.tokens for setup, kept in zip(different, logs, strict=True)}
        return [found[setup] for setup in setups]

    def _too_short(self, stage: str) -> UsageError:
        plan = self.plan
        return UsageError(
            f"--text {plan.text}: its part for {stage} is shorter than a chunk of {plan.n_ctx} tokens; "
            "give a longer text or a smaller --ctx"
        )

    def _file(self, assignment: Assignment) -> TransformFile | None:
        transform = transform_of(assignment, self.fitted, self.model, self.provenance)
        if not transform.layers:
            return None
        path = self.work / "candidates" / f"{transform.digest[:16]}.gguf"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_transform(transform, path)
        return transform_file(path, transform)

    def _log(self, stage: str, setup: CacheSetup) -> Path:
        return self.work / stage / f"{folder_name(cache_key(setup.policy, setup.transform))}.jsonl"


def by_depth(
    without: Sequence[TokenDivergence], transformed: Sequence[TokenDivergence]
) -> tuple[DepthKL, ...]:
    """Return the means of both over ranges of positions; they are of the same tokens."""
    pairs = sorted((a.position, a.kl, b.kl) for a, b in zip(without, transformed, strict=True))
    low, high = pairs[0][0], pairs[-1][0]
    width = max(1, -(-(high + 1 - low) // N_DEPTHS))
    found = []
    for index, group in groupby(pairs, lambda pair: (pair[0] - low) // width):
        rows = list(group)
        first = low + index * width
        means = [sum(row[side] for row in rows) / len(rows) for side in (1, 2)]
        found.append(DepthKL(first, min(first + width - 1, high), *means))
    return tuple(found)
