"""How long the rest of a validation takes: from what is recorded, else from a short try."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from kvquant.evals.chat_speed import CONVERSATION, N_GENERATE, parse_turn
from kvquant.evals.endpoint import Endpoint
from kvquant.evals.suite_parts import PATHS
from kvquant.evals.validation.plan import Plan
from kvquant.evals.validation.records import Records
from kvquant.evals.validation.steps import (
    CHAT,
    MEMORY,
    REPEAT,
    SPEED,
    TASKS,
    Step,
    divergence_part,
)
from kvquant.llama.server import LlamaServer, ServerOptions

PerUnit = Mapping[str, float]
"""Seconds a unit of a part takes, by the part's name."""

_PROMPT = "one two three four " * 16
_N_GENERATE = 16
_BYTES_A_TOKEN = 3
"""Few: more tokens than most vocabularies make of English."""


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
        kv_layers=plan.baseline.text,
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
