"""The parts of a validation in the order in which they run, and how much of each is left."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kvquant.evals.validation.plan import Plan
from kvquant.evals.validation.records import Records

TASKS = "tasks"
REPEAT = "repeat"
CHAT = "chat"
MEMORY = "memory"
DIVERGENCE = "divergence"
SPEED = "speed"

SERVED = (TASKS, CHAT, MEMORY)
"""What one start of a policy's server measures, in this order: the peak of memory is that of the work."""


@dataclass(frozen=True)
class Step:
    """A part of one policy (canonical text): ``n`` units, of which ``n_done`` are finished.

    A unit is a sample, a conversation, a pass over the texts, or a run of llama-bench, by the part. failed:
    the last attempt came to nothing.
    """

    policy: str
    part: str
    n: int
    n_done: int
    failed: bool = False

    @property
    def n_left(self) -> int:
        """Units still to be done."""
        return self.n - self.n_done


@dataclass(frozen=True)
class Done:
    """What is finished.

    samples: ids by (policy, TASKS or REPEAT). measured, failed: (policy, part). rounds: (index, policy).
    """

    samples: Mapping[tuple[str, str], Collection[str]]
    measured: Collection[tuple[str, str]]
    rounds: Collection[tuple[int, str]]
    failed: Collection[tuple[str, str]]


NOTHING = Done({}, (), (), ())


def done_in(records: Records | None) -> Done:
    """Return what the records of a validation hold, nothing for None."""
    if records is None:
        return NOTHING
    journal = records.journal
    runs = {(policy, TASKS): run for policy, run in records.runs.items()}
    if records.repeat is not None:
        runs[journal.start.policies[0].policy, REPEAT] = records.repeat
    samples = {key: frozenset(sample.id for sample in run.samples) for key, run in runs.items()}
    rounds = frozenset((measured.index, measured.policy) for measured in journal.rounds)
    return Done(samples, frozenset(journal.measured), rounds, frozenset(journal.failures))


def steps(plan: Plan, done: Done) -> list[Step]:
    """Return every step in order, finished ones included."""
    parts, texts = plan.suite.parts, [policy.text for policy in plan.policies]
    found = []
    for text in texts:
        found += [_step(plan, text, part, done) for part in SERVED if asks(plan, part)]
    if plan.samples:
        found.append(_step(plan, texts[0], REPEAT, done))
    found += [_step(plan, text, part, done) for text in texts for part in divergence_parts(plan)]
    if parts.speed is not None:
        found += [_step(plan, text, SPEED, done) for text in texts]
    return found


def asks(plan: Plan, part: str) -> bool:
    """Whether the suite has one of the parts in SERVED."""
    parts = plan.suite.parts
    chats = parts.speed is not None and parts.speed.n_chats > 0
    return {TASKS: bool(plan.samples), CHAT: chats, MEMORY: parts.memory}[part]


def divergence_parts(plan: Plan) -> tuple[str, ...]:
    """The names of the parts that measure divergence, one a path."""
    divergence = plan.suite.parts.divergence
    return tuple(divergence_part(path) for path in divergence.paths) if divergence else ()


def divergence_part(path: str) -> str:
    """The name of the part that measures divergence on a path."""
    return f"{DIVERGENCE} {path}"


def pending(found: Sequence[Step], policy: str, parts: Collection[str]) -> list[str]:
    """The parts of a policy that are not finished, in order."""
    of_policy = [step for step in found if step.policy == policy and step.part in parts]
    return [step.part for step in of_policy if step.n_left or step.failed]


def _step(plan: Plan, policy: str, part: str, done: Done) -> Step:
    speed = plan.suite.parts.speed
    if part in {TASKS, REPEAT}:
        n = len(plan.samples)
        finished = done.samples.get((policy, part), ())
        n_done = sum(sample.id in finished for sample in plan.samples)
    elif part == SPEED and speed is not None:
        n = speed.n_rounds
        n_done = sum(text == policy and index < n for index, text in done.rounds)
    else:
        n = speed.n_chats if part == CHAT and speed is not None else 1
        n_done = n if (policy, part) in done.measured else 0
    return Step(policy, part, n, n_done, (policy, part) in done.failed)
