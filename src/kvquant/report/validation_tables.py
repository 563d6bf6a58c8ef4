"""The tables of a validation and of compared runs, the same for a terminal, Markdown and a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvquant.results.comparison import TaskRow, Verdict
from kvquant.results.validation import Divergence, PolicyResult, ValidationResult
from kvquant.tables import (
    NONE,
    UNKNOWN,
    Table,
    n_bytes,
    number,
    percent,
    points,
    seconds,
    small,
    times,
    with_interval,
)


def verdict_table(result: ValidationResult) -> Table:
    """The verdict on every policy and the numbers that decide it.

    Of several paths and depths it is those of the worst: where KL lies furthest above the floor, and where a
    phase is slowest beside the baseline.
    """
    head = (
        *("policy", "verdict", "KV cache", "of baseline", "right", "change, points", "KL, nats", "KL floor"),
        *("same top token", "prefill", "decode"),
    )
    return Table(head, tuple(_verdict_row(policy) for policy in result.policies), words=(1,))


def _verdict_row(policy: PolicyResult) -> tuple[str, ...]:
    total, path, memory = policy.total, policy.worst_divergence, policy.memory
    is_baseline = policy.verdict is Verdict.BASELINE
    return (
        _named(policy),
        policy.verdict,
        UNKNOWN if memory is None else n_bytes(memory.kv_bytes),
        times(policy.ratio),
        UNKNOWN if total is None else percent(total.other.rate),
        NONE if is_baseline else UNKNOWN if total is None else _change(total),
        *((NONE,) * 3 if is_baseline else _divergence(path)),
        _slowest(policy, "prefill"),
        _slowest(policy, "decode"),
    )


def _named(policy: PolicyResult) -> str:
    """The label, with the rules behind it where it is another name for them."""
    rules = policy.policy
    return policy.label if policy.label in (rules, rules.removeprefix("*:")) else f"{policy.label} ({rules})"


def _divergence(path: Divergence | None) -> tuple[str, str, str]:
    if path is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    floor = UNKNOWN if path.floor is None else small(path.floor.mean)
    return with_interval(small(path.mean), path.interval, small), floor, percent(path.top1.value)


def _slowest(policy: PolicyResult, phase: str) -> str:
    point = policy.slowest(phase)
    if point is None:
        return UNKNOWN
    shown = times(point.ratio)
    return shown if policy.verdict is Verdict.BASELINE else f"{shown} (depth {point.depth:,})"


def task_table(rows: Sequence[TaskRow], other: str = "policy") -> Table:
    """The categories of one policy or run against the baseline. other: what the other one is called."""
    head = (
        *("category", "n", "baseline", other, "lost", "gained", "change, points", "p", "finds, points"),
        "verdict",
    )
    return Table(head, tuple(map(_task_row, rows)), words=(9,))


def _task_row(row: TaskRow) -> tuple[str, ...]:
    finds = row.minimum_detectable_effect
    return (
        row.category,
        str(row.n),
        percent(row.baseline.rate),
        percent(row.other.rate),
        str(row.n_lost),
        str(row.n_gained),
        _change(row),
        f"{row.p_holm:.2g}",
        NONE if finds is None else f"{100 * finds:.1f}",
        row.verdict,
    )


def _change(row: TaskRow) -> str:
    return with_interval(points(row.change.value), row.change.interval, points)


def reason_lines(rows: Sequence[TaskRow]) -> list[str]:
    """Why rows cannot tell, and what was left out, a line each; categories of one reason share one."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            by_reason.setdefault(row.reason, []).append(row.category)
    lines = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    n_left_out = max((row.n_unanswered for row in rows), default=0)
    if n_left_out:
        lines.append(f"left out, because the endpoint failed in one of the two: {_samples(n_left_out)}")
    return lines


def _samples(n: int) -> str:
    return "1 sample" if n == 1 else f"{n} samples"


def repeat_rows(result: ValidationResult) -> tuple[TaskRow, ...]:
    """The categories of the baseline against itself."""
    return tuple(row for policy in result.policies for row in policy.repeat)


def divergence_table(result: ValidationResult) -> Table:
    """KL divergence of every policy and path."""
    head = (
        *("policy", "path", "tokens", "mean KL", "floor", "median", "99 %", "99.9 %", "largest"),
        *("same top token", "Δp rms", "perplexity", "of baseline"),
    )
    return Table(head, tuple(_divergence_rows(result)), words=(1,))


def _divergence_rows(result: ValidationResult) -> Iterator[tuple[str, ...]]:
    for policy in result.policies:
        for path in policy.divergence:
            floor = path.floor
            yield (
                policy.label,
                path.path,
                str(path.n_tokens),
                with_interval(small(path.mean), path.interval, small),
                UNKNOWN if floor is None else with_interval(small(floor.mean), floor.interval, small),
                *(small(value) for value in (path.median, path.p99, path.p999, path.max)),
                percent(path.top1.value),
                percent(path.delta_p_rms),
                number(path.ppl_policy),
                number(path.ppl_baseline),
            )


def speed_table(result: ValidationResult) -> Table:
    """Speed of every policy, phase and depth."""
    rows = tuple(
        (
            policy.label,
            point.phase,
            str(point.depth),
            number(point.tokens_per_second),
            with_interval(times(point.ratio), point.interval, times),
            str(point.n_rounds),
        )
        for policy in result.policies
        for point in policy.speed
    )
    return Table(("policy", "phase", "depth", "tokens/s", "of baseline", "rounds"), rows, words=(1,))


def memory_table(result: ValidationResult) -> Table:
    """What every policy's cache takes, by each of the sources."""
    rows = tuple(
        (
            policy.label,
            *map(n_bytes, (memory.kv_bytes_logged, memory.kv_bytes_computed, memory.kv_bytes_slot)),
            times(memory.ratio),
            n_bytes(memory.peak_rss_bytes),
        )
        for policy in result.policies
        if (memory := policy.memory) is not None
    )
    return Table(("policy", "logged", "computed", "by slot", "of baseline", "peak of the server"), rows)


def chat_table(result: ValidationResult) -> Table:
    """The fixed conversation under every policy."""
    rows = tuple(
        (policy.label, seconds(chat.ttft_seconds), number(chat.tokens_per_second))
        for policy in result.policies
        if (chat := policy.chat) is not None
    )
    return Table(("policy", "first token", "tokens/s"), rows)
