"""Prefill and decode speed by llama-bench, policies in turn so that a machine that drifts favours none.

A round of a policy is one run of llama-bench over all depths. Round 0 goes through the policies in order,
round 1 backwards, round 2 in order again: a machine that steadily warms up slows every policy alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from kvquant.errors import LlamaError, PolicyError
from kvquant.llama.logs import failure_line
from kvquant.policy import Policy, parse_policy
from kvquant.processes.background import BackgroundProgram, clean_environment

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class BenchOptions:
    """What one run of llama-bench measures.

    depths: tokens that are in the cache before the clock starts. n_prompt, n_gen: tokens timed in prefill and
    in decode. n_threads: None leaves it to llama.cpp. timeout_seconds: for one run, after which it counts as
    hung. extra: further arguments as they are.
    """

    model: Path
    depths: tuple[int, ...] = (0, 1024, 4096)
    n_prompt: int = 256
    n_gen: int = 32
    n_threads: int | None = None
    timeout_seconds: float = 1800.0
    extra: tuple[str, ...] = ()

    def arguments(self, policy: Policy) -> list[str]:
        """Return the command line after the program's name."""
        arguments = ["--model", str(self.model), "--kv-layers", str(policy), "--output", "jsonl"]
        arguments += ["--n-prompt", str(self.n_prompt), "--n-gen", str(self.n_gen)]
        arguments += ["--n-depth", ",".join(map(str, self.depths)), "--repetitions", "1"]
        if self.n_threads is not None:
            arguments += ["--threads", str(self.n_threads)]
        return [*arguments, *self.extra]


@dataclass(frozen=True)
class SpeedPoint:
    """One timing: ``n_tokens`` processed (prefill) or made (decode) with ``depth`` tokens in the cache."""

    phase: Phase
    depth: int
    n_tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class SpeedRound:
    """One run of llama-bench. index: which round of its policy, from 0. started: UTC, ISO 8601."""

    label: str
    index: int
    policy: str
    started: str
    wall_seconds: float
    points: tuple[SpeedPoint, ...]

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> SpeedRound:
        """Read the JSON form back. Raises KeyError or TypeError for anything else."""
        points = tuple(SpeedPoint(**point) for point in document["points"])
        return cls(**{**document, "points": points})


def turns(labels: Sequence[str], n_rounds: int) -> Iterator[tuple[int, str]]:
    """Yield (round, label) in the order in which they run: every second round backwards."""
    for index in range(n_rounds):
        for label in labels if index % 2 == 0 else reversed(labels):
            yield index, label


def run_rounds(
    programs: Path,
    options: BenchOptions,
    policies: Mapping[str, Policy],
    n_rounds: int,
    folder: Path,
    on_round: Callable[[SpeedRound], None],
    on_failure: Callable[[str, LlamaError, Path], None],
    finished: Collection[tuple[int, str]] = (),
) -> None:
    """Measure every policy, by label, ``n_rounds`` times, each finished round handed to ``on_round`` at once.

    folder: where logs go, one per run. finished: (round, label) of earlier runs, which are passed over. A
    policy whose run fails is given to ``on_failure``, with the error and the log, and left out from then on;
    the others go on. Raises LlamaError when there is no llama-bench.
    """
    check_programs(programs)
    numbers = {label: number for number, label in enumerate(policies)}
    failed: set[str] = set()
    for index, label in turns(tuple(policies), n_rounds):
        if (index, label) in finished or label in failed:
            continue
        log = folder / f"llama-bench-{numbers[label]}-{index}.log"
        try:
            measured = run_round(programs, options, label, policies[label], index, log)
        except LlamaError as error:
            failed.add(label)
            on_failure(label, error, log)
        else:
            on_round(measured)


def check_programs(programs: Path) -> None:
    """Raise LlamaError when there is no llama-bench in ``programs``."""
    if not (programs / "llama-bench").is_file():
        raise LlamaError(f"there is no llama-bench in {programs}; kvquant llama build makes one")


def run_round(
    programs: Path, options: BenchOptions, label: str, policy: Policy, index: int, log: Path
) -> SpeedRound:
    """Run llama-bench once with its output in ``log``.

    Raises LlamaError, one line, when it fails, hangs, or answers something else than was asked.
    """
    argv = [str(programs / "llama-bench"), *options.arguments(policy)]
    started = datetime.now(UTC).isoformat(timespec="seconds")
    start = time.monotonic()
    with BackgroundProgram(argv, log, env=clean_environment()) as program:
        status = program.wait(options.timeout_seconds)
        wall_seconds = time.monotonic() - start
        text = program.log_text()
    if status is None:
        raise LlamaError(f"llama-bench did not end within {options.timeout_seconds:g} s")
    if status != 0:
        raise LlamaError(f"llama-bench ended with status {status}: {failure_line(text)}")
    points = parse_bench(text, policy)
    expected = {(phase, depth) for depth in options.depths for phase in ("prefill", "decode")}
    if {(point.phase, point.depth) for point in points} != expected:
        raise LlamaError(f"llama-bench gave {len(points)} of {len(expected)} results")
    return SpeedRound(label, index, str(policy), started, round(wall_seconds, 3), points)


def parse_bench(text: str, policy: Policy) -> tuple[SpeedPoint, ...]:
    """Return the results in llama-bench's jsonl output; lines of another kind are passed over.

    Raises LlamaError for a damaged result and for one of another policy.
    """
    return tuple(_point(line, policy) for line in text.splitlines() if line.startswith("{"))


def _point(line: str, policy: Policy) -> SpeedPoint:
    try:
        row = json.loads(line)
        n_prompt, n_gen, depth = (int(row[name]) for name in ("n_prompt", "n_gen", "n_depth"))
        speed = float(row["avg_ts"])
        ran = parse_policy(str(row["kv_layers"]))
    except (ValueError, KeyError, TypeError, PolicyError) as error:
        raise LlamaError(f"llama-bench: a result that cannot be read: {line[:80]}") from error
    if ran != policy:
        raise LlamaError(f"llama-bench ran {ran}, asked for {policy}; use a build with the patches")
    if not speed > 0:
        raise LlamaError(f"llama-bench: {speed:g} tokens/s at depth {depth}; the clock or the run is broken")
    return SpeedPoint("decode" if n_gen else "prefill", depth, n_gen or n_prompt, speed)
