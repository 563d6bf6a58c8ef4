"""Speed: prefill and decode by llama-bench, and a fixed conversation with a running llama-server.

A round of a policy is one run of llama-bench over all depths. Round 0 goes through the policies in order,
round 1 backwards, round 2 in order again: a machine that steadily warms up slows every policy alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from kvquant.errors import LlamaError, PolicyError
from kvquant.evals.statistics import median_interval
from kvquant.llama.logs import failure_line
from kvquant.llama.server import LlamaServer
from kvquant.policy import Policy, parse_policy
from kvquant.processes.background import BackgroundProgram, clean_environment
from kvquant.results.validation import Chat, Speed
from kvquant.transform import TransformFile, cache_key

Phase = Literal["prefill", "decode"]


_ABOUT = (
    "A key-value cache keeps what attention needs of every earlier token, so that a new token costs one row "
    "and not the whole text again. It grows with the text, with the layers and with the heads. "
)

CONVERSATION: tuple[tuple[str, str], ...] = (
    (_ABOUT * 2 + "Which of its two halves is usually more sensitive?", "Usually the keys."),
    ("And which layers matter most?", "Often the first and the last ones, but that depends on the model."),
    (_ABOUT + "What happens when it no longer fits into memory?", "Then the machine swaps or gives up."),
    ("So how would you choose the type of each layer?", "By measuring what each one costs."),
)
"""Turns of (user, assistant). The assistant's words are given, so that every policy is asked the same."""

N_GENERATE = 48
"""Tokens made in each turn, whatever the model would like to end with."""


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
    """One run of llama-bench. index: which round of its policy, from 0. policy: canonical text, and which
    transform goes with it. started: UTC, ISO 8601.
    """

    label: str
    index: int
    policy: str
    started: str
    wall_seconds: float
    points: tuple[SpeedPoint, ...]


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
    transforms: Mapping[str, TransformFile] | None = None,
) -> None:
    """Measure every policy, by label, ``n_rounds`` times, each finished round handed to ``on_round`` at once.

    folder: where logs go, one per run. finished: (round, label) of earlier runs, which are passed over.
    transforms: of K, by the label of the policy each goes with. A policy whose run fails is given to
    ``on_failure``, with the error and the log, and left out from then on; the others go on. Raises LlamaError
    when there is no llama-bench.
    """
    check_programs(programs)
    numbers = {label: number for number, label in enumerate(policies)}
    failed: set[str] = set()
    for index, label in turns(tuple(policies), n_rounds):
        if (index, label) in finished or label in failed:
            continue
        log = folder / f"llama-bench-{numbers[label]}-{index}.log"
        try:
            transform = (transforms or {}).get(label)
            measured = run_round(programs, options, label, policies[label], index, log, transform)
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
    programs: Path,
    options: BenchOptions,
    label: str,
    policy: Policy,
    index: int,
    log: Path,
    transform: TransformFile | None = None,
) -> SpeedRound:
    """Run llama-bench once with its output in ``log``.

    Raises LlamaError, one line, when it fails, hangs, or answers something else than was asked.
    """
    argv = [str(programs / "llama-bench"), *options.arguments(policy)]
    argv += [] if transform is None else ["--kv-transform", str(transform.path)]
    started = datetime.now(UTC).isoformat(timespec="seconds")
    start = time.monotonic()
    with BackgroundProgram(argv, log, env=clean_environment()) as program:
        status = program.wait(options.timeout_seconds)
        wall_seconds = time.monotonic() - start
        text = program.log_text()
    if status is None:
        raise LlamaError(f"llama-bench did not finish within {options.timeout_seconds:g} s")
    if status != 0:
        raise LlamaError(f"llama-bench ended with status {status}: {failure_line(text)}")
    points = parse_bench(text, policy)
    expected = {(phase, depth) for depth in options.depths for phase in ("prefill", "decode")}
    if {(point.phase, point.depth) for point in points} != expected:
        raise LlamaError(f"llama-bench gave {len(points)} of {len(expected)} results")
    return SpeedRound(
        label, index, cache_key(str(policy), transform), started, round(wall_seconds, 3), points
    )


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
        raise LlamaError(f"llama-bench: a result that is not readable: {line[:80]}") from error
    if ran != policy:
        raise LlamaError(f"llama-bench ran {ran}, asked for {policy}; use a build with the patches")
    if not speed > 0:
        raise LlamaError(f"llama-bench: {speed:g} tokens/s at depth {depth}; the clock or the run is broken")
    return SpeedPoint("decode" if n_gen else "prefill", depth, n_gen or n_prompt, speed)


def speeds_of(rounds: Iterable[SpeedRound], baseline: str) -> dict[str, tuple[Speed, ...]]:
    """Sum up rounds of several policies, in any order, by label; ``baseline`` is one.

    Labels come in the order of their first round, then prefill before decode, then by depth. Speeds are
    medians over a label's rounds, ratios medians over the rounds that the baseline has too. A round that was
    measured twice counts as it was last measured. The baseline's own ratio is 1 and has no interval.
    """
    speeds: dict[str, dict[tuple[Phase, int], dict[int, float]]] = {}
    for measured in rounds:
        of_label = speeds.setdefault(measured.label, {})
        for point in measured.points:
            of_label.setdefault((point.phase, point.depth), {})[measured.index] = point.tokens_per_second
    reference = speeds.get(baseline, {})
    return {
        label: tuple(
            _speed(key, by_round, reference.get(key, {}), label == baseline)
            for key, by_round in sorted(
                of_label.items(), key=lambda item: (item[0][0] == "decode", item[0][1])
            )
        )
        for label, of_label in speeds.items()
    }


def _speed(
    key: tuple[Phase, int], by_round: dict[int, float], reference: dict[int, float], is_baseline: bool
) -> Speed:
    ratios = [speed / reference[index] for index, speed in by_round.items() if index in reference]
    return Speed(
        phase=key[0],
        depth=key[1],
        tokens_per_second=median(by_round.values()),
        ratio=median(ratios) if ratios else None,
        interval=None if is_baseline else median_interval(ratios),
        n_rounds=len(by_round),
    )


@dataclass(frozen=True)
class ChatTurn:
    """One answer, as the server timed it.

    n_prompt: tokens processed for it; n_cached: tokens that were in the cache already. prompt_seconds: from
    the start of the prompt to the first token. generate_seconds: for the tokens after the first.
    """

    n_prompt: int
    n_cached: int
    prompt_seconds: float
    n_generated: int
    generate_seconds: float


def run_chat(server: LlamaServer, n_generate: int = N_GENERATE) -> tuple[ChatTurn, ...]:
    """Hold the conversation, each turn on top of the ones before, whose tokens the server still has.

    The first turn starts from an empty sequence; the whole takes up to 1,024 tokens of context. Raises
    LlamaError when the server fails or answers without timings.
    """
    messages: list[dict[str, str]] = []
    turns = []
    for number, (question, answer) in enumerate(CONVERSATION):
        messages.append({"role": "user", "content": question})
        body = {
            "messages": messages,
            "max_tokens": n_generate,
            "temperature": 0,
            "seed": 0,
            "ignore_eos": True,
            "cache_prompt": number > 0,
        }
        turns.append(parse_turn(server.post("/v1/chat/completions", body)))
        messages.append({"role": "assistant", "content": answer})
    return tuple(turns)


def parse_turn(answer: dict[str, Any]) -> ChatTurn:
    """Read the timings of a chat completion. Raises LlamaError when they are missing."""
    try:
        timings = answer["timings"]
        return ChatTurn(
            n_prompt=int(timings["prompt_n"]),
            n_cached=int(timings["cache_n"]),
            prompt_seconds=float(timings["prompt_ms"]) / 1000,
            n_generated=int(timings["predicted_n"]),
            generate_seconds=float(timings["predicted_ms"]) / 1000,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LlamaError("llama-server answered a chat without timings") from error


def chat_of(turns: Sequence[ChatTurn]) -> Chat:
    """Sum up one or more conversations: median time to the first token, speed of the tokens after it."""
    n_after_first = sum(max(turn.n_generated - 1, 0) for turn in turns)
    seconds = sum(turn.generate_seconds for turn in turns)
    return Chat(
        ttft_seconds=median(turn.prompt_seconds for turn in turns) if turns else None,
        tokens_per_second=n_after_first / seconds if n_after_first and seconds > 0 else None,
        n_turns=len(turns),
        n_prompt=sum(turn.n_prompt for turn in turns),
        n_generated=sum(turn.n_generated for turn in turns),
    )
