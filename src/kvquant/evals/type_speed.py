"""How fast a model decodes with each cache type on this machine, for a search to leave slow ones out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kvquant.documents import from_document, to_document
from kvquant.errors import LlamaError, UsageError
from kvquant.evals.append_only import alone_in, appending, parse_lines
from kvquant.evals.speed import BenchOptions, SpeedRound, run_rounds, speeds_of
from kvquant.policy import parse_policy
from kvquant.results.search import TypeSpeed

JOURNAL = "speeds.jsonl"
N_ROUNDS = 3
N_PROMPT, N_GENERATE = 32, 32
MAX_DEPTH = 2048
"""Rows in the cache while it is timed, where the context has that many: deep enough for attention to show."""


@dataclass(frozen=True)
class SpeedPlan:
    """What is timed. depth: rows in the cache. n_threads: None leaves it to llama.cpp."""

    programs: Path
    model: Path
    depth: int
    n_threads: int | None = None

    @property
    def bench(self) -> BenchOptions:
        """One run of llama-bench."""
        return BenchOptions(self.model, (self.depth,), N_PROMPT, N_GENERATE, self.n_threads)


def type_speeds(
    plan: SpeedPlan,
    types: Sequence[str],
    baseline: str,
    folder: Path,
    on_round: Callable[[int, int], None] = lambda *_: None,
) -> tuple[TypeSpeed, ...]:
    """Time decoding with each type for both K and V in every layer; ``baseline`` is one of the types.

    Rounds go forwards and backwards through the types, so that drift cancels; each finished one is kept in
    ``folder`` and not run again. on_round: is told how many are done, and of how many. Raises LlamaError
    when a run fails, KVQuantError when the journal cannot be written or is damaged.
    """
    known: list[SpeedRound] = []
    path, planned = folder / JOURNAL, N_ROUNDS * len(types)

    def read(line: dict[str, Any]) -> None:
        known.append(from_document(SpeedRound, line, f"{path}: round"))

    with (
        alone_in(folder),
        appending(path, lambda data: parse_lines(data, path, read)) as lines,
        tempfile.TemporaryDirectory(prefix="kvquant-") as logs,
    ):
        rounds = [one for one in known if one.label in types and _is_of(one, plan)]

        def keep(measured: SpeedRound) -> None:
            lines.write(to_document(measured), f"the {len(rounds)} timings before this are kept")
            rounds.append(measured)
            on_round(len(rounds), planned)

        run_rounds(
            plan.programs,
            plan.bench,
            {name: parse_policy(f"*:{name}") for name in types},
            N_ROUNDS,
            Path(logs),
            keep,
            _raise,
            finished={(one.index, one.label) for one in rounds},
        )
    by_type = speeds_of(rounds, baseline)
    return tuple(
        TypeSpeed(name, speed) for name in types for speed in by_type[name] if speed.phase == "decode"
    )


def slow_types(speeds: Sequence[TypeSpeed], min_speed: float) -> tuple[str, ...]:
    """The types that decode at less than ``min_speed`` of the baseline's rate."""
    return tuple(one.type for one in speeds if one.decode.ratio is None or one.decode.ratio < min_speed)


def fast_enough(speeds: Sequence[TypeSpeed], min_speed: float, baseline: str) -> tuple[str, ...]:
    """The other types, the baseline first. Raises UsageError where it alone is left."""
    slow = slow_types(speeds, min_speed)
    kept = tuple(one.type for one in speeds if one.type == baseline or one.type not in slow)
    if len(kept) == 1 and len(speeds) > 1:
        fastest = max((one for one in speeds if one.type != baseline), key=lambda one: one.decode.ratio or 0)
        raise UsageError(
            f"--min-speed {min_speed:g} leaves no type but {baseline}; the fastest, {fastest.type}, reaches "
            f"{fastest.decode.ratio or 0:.3f} of its rate; give a smaller share"
        )
    return kept


def _is_of(measured: SpeedRound, plan: SpeedPlan) -> bool:
    return all(point.depth == plan.depth for point in measured.points)


def _raise(label: str, error: LlamaError, _log: Path) -> NoReturn:
    raise LlamaError(f"timing {label}: {error}") from error
