"""From numbers to a verdict, one rule a function, each with a sentence that holds its numbers.

The limits come from the suite's ``[rules]`` (docs/evaluation.md). Answers and divergence decide whether a
policy is safe. Speed can only add a cost. A cache that is not what was asked for is a failure: the other
numbers are then about something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvquant.evals.compare import least_to_lose
from kvquant.evals.suite import Rules
from kvquant.results.comparison import TOTAL, Interval, TaskRow, Verdict
from kvquant.results.validation import Divergence, Failure, Memory, Speed
from kvquant.units import format_n_bytes

WORST_FIRST = (Verdict.BROKEN, Verdict.FAILED, Verdict.COSTS, Verdict.CANNOT_TELL, Verdict.SAFE)
"""Of several findings the first of these decides. What is known to be broken stays so if something fails."""

SLOW_DEPTHS = 2
"""Depths at which a phase must be surely slow to count as a cost, where it was measured at as many."""


@dataclass(frozen=True)
class Finding:
    """What one part says, None where it says nothing.

    counts: whether it speaks about quality, without which nothing is called safe.
    """

    verdict: Verdict | None
    reason: str
    counts: bool = False


def conclude(findings: Sequence[Finding]) -> tuple[Verdict, tuple[str, ...]]:
    """Return the worst verdict and every reason."""
    verdicts = {finding.verdict for finding in findings}
    reasons = [finding.reason for finding in findings]
    if not any(finding.counts for finding in findings):
        verdicts.add(Verdict.CANNOT_TELL)
        reasons.append("neither answers nor divergence compare it with the baseline")
    return next(verdict for verdict in WORST_FIRST if verdict in verdicts), tuple(reasons)


def judge_failures(failures: Sequence[Failure]) -> list[Finding]:
    """Every failure is a finding."""
    return [Finding(Verdict.FAILED, f"{failure.part} failed: {failure.what}") for failure in failures]


def judge_missing(parts: Sequence[str]) -> list[Finding]:
    """What is not measured yet cannot clear a policy."""
    return [Finding(Verdict.CANNOT_TELL, f"not finished: {', '.join(parts)}")] if parts else []


def judge_tasks(rows: Sequence[TaskRow], rules: Rules, n_policies: int) -> list[Finding]:
    """One finding for all tests: a category can break a policy, only the total can clear it.

    Where the baseline has too little right to lose, answers say nothing, neither for nor against a policy.
    n_policies: how many were compared with the baseline.
    """
    total = next((row for row in rows if row.category == TOTAL), None)
    if total is None or total.n == 0:
        return []
    worst = next(
        (row for wanted in (Verdict.BROKEN, Verdict.COSTS) for row in rows if row.verdict is wanted), None
    )
    if worst is None and total.n_right < least_to_lose(total.n, rules):
        return [Finding(None, f"all answers say nothing: {total.reason}")]
    row = worst or total
    change = f"{_points(row.change.value)} points"
    said = (
        f"{_category(row)}: {row.n_lost} of {row.n} lost and {row.n_gained} gained, {change}"
        f"{_range(row.change.interval, 100)}, p {row.p_holm:.2g}"
    )
    said += f" adjusted for {n_policies} policies" if n_policies > 1 else ""
    reasons = [f"{said}; {row.reason or _because(row, rules)}", *_said_nothing(rows, rules)]
    return [Finding(row.verdict, "; ".join(reasons), counts=True)]


def _said_nothing(rows: Sequence[TaskRow], rules: Rules) -> list[str]:
    """The categories that are in the total and yet could not lose anything."""
    return [
        f"{row.category} says nothing, the baseline has {row.n_right} of {row.n} right"
        for row in rows
        if row.category != TOTAL and row.n and row.n_right < least_to_lose(row.n, rules)
    ]


def judge_divergence(paths: Sequence[Divergence], rules: Rules) -> list[Finding]:
    """One finding per path: the mean KL above the floor, with its interval, against the two limits."""
    return [_path(path, rules) for path in paths]


def judge_memory(memory: Memory | None) -> list[Finding]:
    """Bytes that agree are a fact, bytes that do not mean that something else ran."""
    if memory is None:
        return []
    if memory.findings:
        return [Finding(Verdict.FAILED, f"the cache is not the requested one: {memory.findings[0]}")]
    sources = [
        name
        for name, value in (
            ("log", memory.kv_bytes_logged),
            ("arithmetic", memory.kv_bytes_computed),
            ("slot file", memory.kv_bytes_slot),
        )
        if value is not None
    ]
    if memory.kv_bytes is None:
        return []
    said = f"cache: {format_n_bytes(memory.kv_bytes)}"
    said += "" if memory.ratio is None else f", {memory.ratio:.3f} of the baseline"
    return [Finding(Verdict.SAFE, said + (f"; {_and(sources)} agree" if len(sources) > 1 else ""))]


def judge_speed(points: Sequence[Speed], rules: Rules) -> list[Finding]:
    """A phase is slow where whole intervals are below the limit, at SLOW_DEPTHS depths if it has so many: of
    many intervals one is off by chance.
    """
    known = [point for point in points if point.ratio is not None]
    if not known:
        return []
    slow = [
        point
        for phase in ("prefill", "decode")
        for point in _slow([p for p in known if p.phase == phase], rules)
    ]
    worst = min(slow or known, key=lambda point: point.ratio or 0.0)
    said = (
        f"{worst.phase} at depth {worst.depth}: {worst.ratio:.2f} of the baseline's speed"
        f"{_range(worst.interval, 1, signed=False)}"
    )
    if slow:
        return [Finding(Verdict.COSTS, f"{said}, below {rules.safe_speed:g}")]
    unsure = f", {worst.n_rounds} of the 6 rounds an interval needs" if worst.interval is None else ""
    return [Finding(Verdict.SAFE, f"slowest point, {said}{unsure}")]


def _slow(points: Sequence[Speed], rules: Rules) -> list[Speed]:
    """The points of a phase that are surely slow, none when they are too few."""
    found = [point for point in points if point.interval and point.interval[1] < rules.safe_speed]
    return found if len(found) >= min(SLOW_DEPTHS, len(points)) else []


def _because(row: TaskRow, rules: Rules) -> str:
    if row.verdict is Verdict.BROKEN:
        return f"a loss of {100 * rules.broken_loss:g} points or more counts as broken"
    if row.verdict is Verdict.COSTS:
        return f"p is at most {rules.alpha:g}"
    found = 100 * (row.minimum_detectable_effect or 0.0)
    limit = f"{100 * rules.safe_loss:g} points"
    return f"a change of {found:.1f} points would have been detected, {limit} do not matter"


def _path(path: Divergence, rules: Rules) -> Finding:
    if path.above_floor is None:
        return Finding(Verdict.CANNOT_TELL, f"divergence, {path.path}: unknown", counts=True)
    floor = path.floor.mean if path.floor and path.floor.mean is not None else 0.0
    said = f"divergence, {path.path}: mean KL {path.above_floor:.2g} nats above the floor"
    same = "" if path.top1.value is None else f", same first choice {path.top1.value:.1%}"
    if path.interval is None:
        few = f"{path.n_tokens} tokens are too few for an interval"
        return Finding(Verdict.CANNOT_TELL, f"{said}{same}; {few}", counts=True)
    low, high = (bound - floor for bound in path.interval)
    said += f" ({low:.2g} to {high:.2g}){same}"
    if low >= rules.broken_kl:
        return Finding(Verdict.BROKEN, f"{said}; {rules.broken_kl:g} or more counts as broken", True)
    if low > rules.safe_kl:
        return Finding(Verdict.COSTS, f"{said}, above {rules.safe_kl:g}", True)
    if high <= rules.safe_kl:
        return Finding(Verdict.SAFE, f"{said}, at most {rules.safe_kl:g}", True)
    return Finding(Verdict.CANNOT_TELL, f"{said}; {rules.safe_kl:g} is inside", True)


def _category(row: TaskRow) -> str:
    return "all answers" if row.category == TOTAL else row.category


def _points(change: float | None) -> str:
    return "unknown" if change is None else f"{100 * change:+.1f}"


def _range(interval: Interval | None, factor: float, *, signed: bool = True) -> str:
    if interval is None:
        return ""
    low, high = (f"{factor * bound:+.1f}" if signed else f"{factor * bound:.2f}" for bound in interval)
    return f" ({low} to {high})"


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]])
