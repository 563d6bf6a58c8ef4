"""The records of a validation, finished or not, summed up in one result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvquant.documents import from_document, to_document
from kvquant.errors import UsageError
from kvquant.evals.compare import compare
from kvquant.evals.records import Run
from kvquant.evals.speed import speeds_of
from kvquant.evals.suite import Rules
from kvquant.evals.suite_parts import PATHS
from kvquant.evals.validation.plan import CHAT, MEMORY, TASKS, divergence_part
from kvquant.evals.validation.records import Folder, Journal, NamedPolicy, Records, read_records
from kvquant.evals.validation.verdict import (
    conclude,
    judge_divergence,
    judge_failures,
    judge_memory,
    judge_missing,
    judge_speed,
    judge_tasks,
)
from kvquant.results.comparison import TaskRow, Verdict, total_row
from kvquant.results.validation import (
    Chat,
    Divergence,
    Floor,
    Memory,
    PolicyResult,
    Speed,
    ValidationResult,
    read_result,
)


def assemble(records: Records, rules: Rules | None = None) -> ValidationResult:
    """Return the result of what is there. rules: those of the records, unless others are given."""
    start = records.journal.start
    used = rules or from_document(Rules, start.suite.rules, "the rules of the validation")
    baseline = start.policies[0]
    rows = _task_rows(records, used)
    measured = [_measured(records.journal, policy, baseline.policy) for policy in start.policies]
    speeds = _speeds(records.journal, baseline.policy)
    policies = []
    for policy, result in zip(start.policies, measured, strict=True):
        full = replace(
            result,
            memory=_with_ratio(result.memory, measured[0].memory),
            tasks=rows.get(policy.policy, ()),
            speed=speeds.get(policy.policy, ()),
        )
        if policy == baseline:
            policies.append(_judged_baseline(full, records, used))
        else:
            missing = _missing(records.journal, policy.policy)
            policies.append(_judged(full, missing, used, len(rows)))
    return ValidationResult(
        model=start.model,
        suite=replace(start.suite, rules=to_document(used)),
        provenance=_provenance(records.journal),
        baseline=baseline.label,
        policies=tuple(policies),
    )


def load_validation(root: Path, rules: Rules | None = None) -> ValidationResult:
    """Return the result of the validation in ``root``: from its records where they are, else from its result
    file, whose verdicts then are as they were.

    Raises KVQuantError when a file is damaged, UsageError for other rules without records.
    """
    folder = Folder(root)
    if folder.journal.exists():
        return assemble(read_records(folder), rules)
    if rules is not None:
        raise UsageError(f"{root} has results without records; other rules cannot be applied to them")
    return read_result(folder.result)


def _task_rows(records: Records, rules: Rules) -> dict[str, tuple[TaskRow, ...]]:
    """The paired rows of every policy with answers, without the baseline."""
    policies = [named.policy for named in records.journal.start.policies]
    baseline = records.runs.get(policies[0])
    others = {policy: records.runs[policy] for policy in policies[1:] if policy in records.runs}
    if baseline is None or not others:
        return {}
    found = compare(baseline, list(others.values()), rules)
    return {policy: compared.rows for policy, compared in zip(others, found, strict=True)}


def _measured(journal: Journal, policy: NamedPolicy, baseline: str) -> PolicyResult:
    """What the journal holds of a policy, not judged yet."""
    text = policy.policy
    memory, chat = (journal.measured.get((text, part)) for part in (MEMORY, CHAT))
    failures = [failure for (failed, _), failure in journal.failures.items() if failed == text]
    return PolicyResult(
        label=policy.label,
        policy=text,
        transform=policy.transform,
        verdict=Verdict.CANNOT_TELL,
        reasons=(),
        memory=None if memory is None else from_document(Memory, memory, f"{text}: memory"),
        divergence=tuple(_divergences(journal, text, baseline)),
        chat=None if chat is None else from_document(Chat, chat, f"{text}: chat"),
        failures=tuple(failures),
    )


def _divergences(journal: Journal, policy: str, baseline: str) -> Iterable[Divergence]:
    """The paths measured, each with the floor: the baseline against itself."""
    for path in PATHS:
        found = journal.measured.get((policy, divergence_part(path)))
        if found is None:
            continue
        own = journal.measured.get((baseline, divergence_part(path)))
        floor = None if own is None else from_document(Floor, own, f"{baseline}: divergence")
        yield replace(from_document(Divergence, found, f"{policy}: divergence"), floor=floor)


def _speeds(journal: Journal, baseline: str) -> dict[str, tuple[Speed, ...]]:
    rounds = [replace(measured, label=measured.policy) for measured in journal.rounds]
    return speeds_of(rounds, baseline)


def _with_ratio(memory: Memory | None, baseline: Memory | None) -> Memory | None:
    if memory is None or baseline is None:
        return memory
    own, other = memory.kv_bytes, baseline.kv_bytes
    return replace(memory, ratio=own / other if own is not None and other else None)


def _missing(journal: Journal, policy: str) -> list[str]:
    """The parts that were asked for, have not failed and are not finished."""
    divergence = journal.start.parts["divergence"]
    asked = [TASKS] if journal.start.n else []
    asked += [divergence_part(path) for path in divergence["paths"]] if divergence else []
    return [
        part
        for part in asked
        if (policy, part) not in journal.measured and (policy, part) not in journal.failures
    ]


def _judged(result: PolicyResult, missing: Sequence[str], rules: Rules, n_policies: int) -> PolicyResult:
    findings = [
        *judge_missing(missing),
        *judge_tasks(result.tasks, rules, n_policies),
        *judge_divergence(result.divergence, rules),
        *judge_memory(result.memory),
        *judge_speed(result.speed, rules),
        *judge_failures(result.failures),
    ]
    verdict, reasons = conclude(findings)
    return replace(result, verdict=verdict, reasons=reasons)


def _judged_baseline(result: PolicyResult, records: Records, rules: Rules) -> PolicyResult:
    """The baseline, with itself asked a second time: what differs there is noise."""
    run = records.runs.get(result.policy)
    repeat = _repeat_rows(run, records.repeat, rules)
    findings = [*judge_memory(result.memory), *judge_failures(result.failures)]
    failed = any(finding.verdict is Verdict.FAILED for finding in findings)
    return replace(
        result,
        verdict=Verdict.FAILED if failed else Verdict.BASELINE,
        reasons=(*_noise(repeat), *(finding.reason for finding in findings)),
        repeat=repeat,
        tasks=_self_rows(run, rules),
    )


def _repeat_rows(run: Run | None, repeat: Run | None, rules: Rules) -> tuple[TaskRow, ...]:
    return compare(run, [repeat], rules)[0].rows if run is not None and repeat is not None else ()


def _self_rows(run: Run | None, rules: Rules) -> tuple[TaskRow, ...]:
    """The baseline paired with the same answers: its rates, in the form the others have."""
    return compare(run, [run], rules)[0].rows if run is not None else ()


def _noise(repeat: tuple[TaskRow, ...]) -> list[str]:
    total = total_row(repeat)
    if total is None:
        return []
    return [
        f"asked twice: {total.n_lost + total.n_gained} of {total.n} answers changed between right and not"
    ]


def _provenance(journal: Journal) -> Mapping[str, Any]:
    start = journal.start
    return {
        **start.provenance,
        "seed": start.seed,
        "n": start.n,
        "n_ctx": start.n_ctx,
        "n_threads": start.n_threads,
        "build": start.build,
    }
