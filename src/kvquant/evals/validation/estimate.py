"""How long the rest of a validation takes: from what is recorded, else from a short try."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kvquant.evals.endpoint import Endpoint
from kvquant.evals.speed import CONVERSATION, N_GENERATE, parse_turn
from kvquant.evals.suite_parts import PATHS
from kvquant.evals.validation.plan import (
    CHAT,
    MEMORY,
    REPEAT,
    SPEED,
    TASKS,
    Plan,
    Step,
    divergence_part,
    done_in,
    steps,
)
from kvquant.evals.validation.records import Folder, Records, read_journal, read_records
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.tables import clock

PerUnit = Mapping[str, float]
"""Seconds a unit of a part takes, by the part's name."""

_PROMPT = "one two three four " * 16
_N_GENERATE = 16
_BYTES_A_TOKEN = 3
"""Few: more tokens than most vocabularies make of English."""


def plan_text(plan: Plan, folder: Folder) -> str:
    """Return what would be measured, what of it is finished, and how long the rest takes.

    That is known from the records in the folder; without any the baseline is tried (`tried`).
    """
    records = None if read_journal(folder) is None else read_records(folder)
    found = steps(plan, done_in(records))
    suite = plan.suite
    lines = [f"suite {suite.name}: {suite.about}", f"model {plan.model_file.name}, {plan.model}"]
    for policy in plan.policies:
        name = "baseline" if policy == plan.baseline else "policy"
        lines.append(f"{name} {policy.label} ({policy.text})")
        lines += [
            f"  {step.part}: {step.n}" + (f", {step.n_done} finished" if step.n_done else "")
            for step in found
            if step.policy == policy.text
        ]
    seconds, complete = seconds_left(found, tried(plan) if records is None else recorded(records))
    how = "from a short try with the baseline" if records is None else f"from the records in {folder.root}"
    lines.append(f"{'about' if complete else 'at least'} {clock(seconds)} left, {how}")
    return "\n".join(lines)


class Countdown:
    """The steps that are left of a validation that runs, and how long they take by what the others took."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, str], Step] = {}
        self._taken: dict[str, list[float]] = {}
        self._begun = time.monotonic()

    def plan(self, found: Sequence[Step]) -> None:
        """Take over all steps."""
        self._left = {(step.policy, step.part): step for step in found}

    def begin(self) -> None:
        """A part begins."""
        self._begun = time.monotonic()

    def advance(self, policy: str, part: str) -> None:
        """Count a unit and its time."""
        now = time.monotonic()
        self._taken.setdefault(part, []).append(now - self._begun)
        self._begun = now
        step = self._left[policy, part]
        self._left[policy, part] = replace(step, n_done=min(step.n, step.n_done + 1))

    def finish(self, policy: str, part: str) -> None:
        """Count a part, and its time where its units were not counted one by one."""
        step = self._left[policy, part]
        if step.n_left:
            self._taken.setdefault(part, []).append((time.monotonic() - self._begun) / step.n_left)
        self._left[policy, part] = replace(step, n_done=step.n)

    def line(self, policy: str, part: str, note: str) -> str:
        """Say where a part stands and what is left of everything."""
        step = self._left[policy, part]
        per_unit = {name: sum(taken) / len(taken) for name, taken in self._taken.items()}
        seconds, complete = seconds_left(list(self._left.values()), per_unit)
        left = f"{'' if complete else 'more than '}{clock(seconds)} left"
        return f"{part} {step.n_done}/{step.n} {note}".rstrip() + f", {left}"


def seconds_left(found: Sequence[Step], per_unit: PerUnit) -> tuple[float, bool]:
    """Return the seconds that the parts of known speed still take, and whether those are all."""
    left = [step for step in found if step.n_left]
    known = sum(step.n_left * per_unit[step.part] for step in left if step.part in per_unit)
    return known, all(step.part in per_unit for step in left)


def recorded(records: Records) -> dict[str, float]:
    """Return what units have taken so far."""
    taken: dict[str, list[float]] = {}
    for run in records.runs.values():
        taken.setdefault(TASKS, []).extend(sample.wall_seconds for sample in run.samples)
    for (_, part), seconds in records.journal.seconds.items():
        if part not in {TASKS, REPEAT}:
            taken.setdefault(part, []).append(seconds)
    for measured in records.journal.rounds:
        taken.setdefault(SPEED, []).append(measured.wall_seconds)
    means = {part: sum(seconds) / len(seconds) for part, seconds in taken.items() if seconds}
    return {**means, **({REPEAT: means[TASKS]} if TASKS in means else {})}


def tried(plan: Plan) -> dict[str, float]:
    """Start the baseline's server, ask one question of each test and time a short completion.

    The other parts follow from the tokens they feed. Raises LlamaError or EndpointError when that fails.
    """
    begun = time.monotonic()
    options = ServerOptions(
        plan.model,
        n_ctx=plan.settings.n_ctx,
        kv_layers=plan.baseline.kv_layers,
        n_threads=plan.settings.n_threads,
    )
    with LlamaServer(plan.programs, options) as server:
        started = time.monotonic() - begun
        found = {MEMORY: started}
        if plan.samples:
            found[TASKS] = found[REPEAT] = _sample_seconds(plan, server)
        turn = parse_turn(server.completion(_PROMPT, _N_GENERATE, ignore_eos=True))
    prefill = turn.n_prompt / turn.prompt_seconds
    decode = turn.n_generated / turn.generate_seconds
    n_fed = sum(len(text) for pair in CONVERSATION for text in pair) / _BYTES_A_TOKEN
    found[CHAT] = n_fed / prefill + len(CONVERSATION) * N_GENERATE / decode
    parts = plan.suite.parts
    if parts.divergence is not None:
        n_tokens = 2 * parts.divergence.n_documents * parts.divergence.n_tokens
        for path, speed in zip(PATHS, (prefill, decode), strict=True):
            found[divergence_part(path)] = n_tokens / speed
    if parts.speed is not None:
        per_depth = parts.speed.n_prompt / prefill + parts.speed.n_gen / decode
        fills = 2 * sum(parts.speed.depths) / prefill
        found[SPEED] = len(parts.speed.depths) * per_depth + fills
    return found


def _sample_seconds(plan: Plan, server: LlamaServer) -> float:
    """The mean over the samples, by the first question of each test."""
    endpoint = Endpoint(f"http://127.0.0.1:{server.port}/v1", plan.settings.timeout_seconds)
    counts = Counter(sample.test.name for sample in plan.samples)
    firsts = {sample.test.name: sample for sample in reversed(plan.samples)}
    total = 0.0
    for name, sample in firsts.items():
        question = sample.question
        begun = time.monotonic()
        endpoint.chat(
            plan.model_file.name,
            question.prompt,
            question.tools,
            plan.suite.max_tokens,
            plan.settings.seed,
        )
        total += counts[name] * (time.monotonic() - begun)
    return total / len(plan.samples)
