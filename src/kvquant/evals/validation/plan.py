"""What a validation will do: one model, one suite, the policies with the baseline first, and its steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kvquant.errors import LlamaError, PolicyError, UsageError
from kvquant.evals.suite import Sample, Suite, samples
from kvquant.evals.suite_parts import REFERENCE_TEXT, DivergencePart
from kvquant.evals.validation.records import Records
from kvquant.evals.variations import split_variations
from kvquant.files import write_atomic
from kvquant.formats.registry import not_in_llama
from kvquant.llama.build import BuildInfo, read_info
from kvquant.memory import ContextOptions, memory_of
from kvquant.model.gguf_file import GgufModel
from kvquant.model.shape import ModelShape
from kvquant.policy import Policy, ResolvedPolicy, parse_policy, preset_text
from kvquant.reference.tasks import Size, Split, held_out_documents
from kvquant.results.validation import ModelFile
from kvquant.transform import TransformFile, cache_key

BASELINE = "*:f16"
"""The policy the others are compared with, where it is among them; else it is the first one."""

CHAT_TEMPLATE = "tokenizer.chat_template"
"""The key of a model file without which llama-server would make up a format that the model has never seen."""


@dataclass(frozen=True)
class PlannedPolicy:
    """A policy as it is shown, as it was read, and layer by layer for this model, None without a shape.

    transform: of K before it is stored, None for none.
    """

    label: str
    policy: Policy
    resolved: ResolvedPolicy | None
    transform: TransformFile | None = None

    @property
    def kv_layers(self) -> str:
        """The canonical text."""
        return str(self.policy)

    @property
    def text(self) -> str:
        """What names it in every record: the canonical text, and which transform goes with it, if any."""
        return cache_key(self.kv_layers, self.transform)


@dataclass(frozen=True)
class Settings:
    """What is equal for all policies.

    n: samples per category. n_threads: None leaves it to llama.cpp. timeout_seconds: for one answer.
    """

    n: int
    seed: int
    n_ctx: int
    n_threads: int | None
    timeout_seconds: float

    @classmethod
    def of(
        cls,
        suite: Suite,
        n: int | None,
        seed: int,
        n_ctx: int | None,
        n_threads: int | None,
        timeout_seconds: float,
    ) -> Settings:
        """Fill in what the suite says where nothing else is asked for; one without tests asks nothing."""
        return cls(
            n=0 if not suite.tests else n or suite.n,
            seed=seed,
            n_ctx=n_ctx or suite.parts.n_ctx,
            n_threads=n_threads,
            timeout_seconds=timeout_seconds,
        )


@dataclass(frozen=True)
class Plan:
    """policies: the baseline first. samples: empty for a suite without tests. build: None without a record of
    it beside the programs.
    """

    programs: Path
    build: BuildInfo | None
    model: Path
    model_file: ModelFile
    shape: ModelShape | None
    suite: Suite
    samples: tuple[Sample, ...]
    settings: Settings
    policies: tuple[PlannedPolicy, ...]

    @property
    def baseline(self) -> PlannedPolicy:
        """The policy the others are compared with."""
        return self.policies[0]


def make_plan(
    programs: Path,
    model: GgufModel,
    shape: ModelShape | None,
    suite: Suite,
    policy_texts: Sequence[str],
    settings: Settings,
    transform: TransformFile | None = None,
) -> Plan:
    """Check everything that can be checked before anything runs.

    shape: None where the memory of the architecture is not known; policies are then llama-server's to check.
    transform: goes with every policy but the baseline's types and those with ``@no-transform`` behind them.
    Raises KVQuantError, one line, for programs, a model file or a policy that will not do, and for a model
    without a chat template where the suite asks questions.
    """
    for name in _programs_needed(suite):
        if not (programs / name).is_file():
            raise LlamaError(f"there is no {name} in {programs}; kvquant llama build makes one")
    if suite.parts.divergence is not None:
        check_text(suite.parts.divergence)
    if suite.tests and CHAT_TEMPLATE not in model.header.values:
        raise UsageError(
            f"{model.shown} has no chat template, and the suite {suite.name} asks questions in a chat; give "
            "an instruct model, or a suite without questions such as kld"
        )
    options = ContextOptions(settings.n_ctx, 1)
    policies = [_varied_policy(text, shape, options, transform) for text in policy_texts]
    texts = [policy.text for policy in policies]
    twice = next((policy for policy in policies if texts.count(policy.text) > 1), None)
    if twice is not None:
        raise UsageError(f"--policy {twice.label}: {twice.text} is given twice; give each policy once")
    if not policies:
        raise UsageError("no --policy; name at least one, such as --policy f16 --policy q8_0")
    return Plan(
        programs=programs,
        build=read_info(programs.parent),
        model=model.path,
        model_file=_model_file(model),
        shape=shape,
        suite=suite,
        samples=tuple(samples(suite, settings.n, settings.seed)) if suite.tests else (),
        settings=settings,
        policies=tuple(sorted(policies, key=lambda policy: policy.text != BASELINE)),
    )


def _varied_policy(
    text: str, shape: ModelShape | None, options: ContextOptions, transform: TransformFile | None
) -> PlannedPolicy:
    varied = split_variations(text)
    if not varied.rotation:
        raise UsageError(
            f"--policy {text}: a server always rotates; kvquant divergence measures without rotation"
        )
    planned = planned_policy(varied.policy, shape, options)
    if transform is None or not varied.transform or planned.kv_layers == BASELINE:
        return planned
    return replace(planned, label=f"{planned.label}@{transform.path.stem}", transform=transform)


def planned_policy(text: str, shape: ModelShape | None, options: ContextOptions) -> PlannedPolicy:
    """Read a policy and fit it to a model. Raises PolicyError or another KVQuantError, one line."""
    policy = parse_policy(text)
    if shape is None:
        return PlannedPolicy(_label(text, policy), policy, None)
    resolved = policy.resolve(shape)
    missing = memory_of(shape, resolved, options).not_runnable
    if missing:
        raise PolicyError(
            f"--policy {text}: {not_in_llama(missing)}; measure it with kvquant "
            "analyze, or on whole models with kvquant.torch (docs/reference-model.md)",
            code="type",
        )
    return PlannedPolicy(_label(text, policy), policy, resolved)


def _label(text: str, policy: Policy) -> str:
    word = text.strip(" \t\r\n").lower()
    return word if preset_text(word) is not None else str(policy).removeprefix("*:")


def _programs_needed(suite: Suite) -> list[str]:
    parts = suite.parts
    chats = parts.speed is not None and parts.speed.n_chats > 0
    needed = {
        "llama-server": bool(suite.tests) or parts.memory or chats,
        "llama-bench": parts.speed is not None,
        "llama-kv-divergence": parts.divergence is not None,
    }
    return [name for name, is_needed in needed.items() if is_needed]


def _model_file(model: GgufModel) -> ModelFile:
    return ModelFile(model.name, model.sha256(), model.n_bytes, model.arch, model.n_layer)


MOST_PAIRS = 64
"""Facts in a document of the reference model at most."""


@dataclass(frozen=True)
class Texts:
    """UTF-8 files, each a document. parse_special: names of special tokens in them stand for these tokens."""

    files: tuple[Path, ...]
    parse_special: bool


def check_text(part: DivergencePart) -> None:
    """Raise UsageError when the suite names a file that is not there."""
    if part.text != REFERENCE_TEXT and not Path(part.text).is_file():
        raise UsageError(f"[kld]: text {part.text!r} is neither {REFERENCE_TEXT} nor a file")


def texts_of(part: DivergencePart, seed: int, folder: Path) -> Texts:
    """Return the texts of a suite; documents that are made, not read, are written into ``folder``.

    Raises UsageError when the suite names a file that is not there.
    """
    check_text(part)
    if part.text != REFERENCE_TEXT:
        return Texts((Path(part.text),), parse_special=False)
    folder.mkdir(exist_ok=True)
    size = Size(part.n_tokens, MOST_PAIRS)
    documents = held_out_documents(seed, Split.TEST, part.n_documents, size)
    files = tuple(folder / f"{index}-{document.kind}.txt" for index, document in enumerate(documents))
    for file, document in zip(files, documents, strict=True):
        write_atomic(file, document.text)
    return Texts(files, parse_special=True)


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


class Watch(Protocol):
    """Told about every step; policies are named by their canonical text."""

    def plan(self, found: Sequence[Step]) -> None:
        """All steps, with what is finished of each."""

    def begin(self, policy: str, part: str) -> None:
        """A part of a policy begins."""

    def advance(self, policy: str, part: str, note: str) -> None:
        """One unit of a part that has many is finished."""

    def finish(self, policy: str, part: str) -> None:
        """A part of a policy is finished."""

    def fail(self, policy: str, part: str, what: str) -> None:
        """A part of a policy came to nothing."""
