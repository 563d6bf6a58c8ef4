"""The result of a validation as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from kvquant.evals.summary import TOTAL
from kvquant.evals.validation.result import PolicyResult, TaskRow, ValidationResult
from kvquant.units import format_n_bytes

HEAD = (
    "policy",
    "cache",
    "ratio",
    "right",
    "change",
    "p",
    "finds",
    "KL",
    "same top",
    "prefill",
    "decode",
    "verdict",
)
_LEFT = {0, len(HEAD) - 1}
UNKNOWN = "-"


def validation_text(result: ValidationResult) -> str:
    """Return the table of verdicts, the reasons of each, and the rules they follow from."""
    rows = [HEAD, *(_row(policy, result) for policy in result.policies)]
    lines = [
        f"{result.model.name}, suite {result.suite.name}, baseline {result.baseline}",
        "",
        *_aligned(rows),
        "",
    ]
    for policy in result.policies:
        lines.append(f"{policy.label}: {policy.verdict}")
        lines += [f"  {reason}" for reason in policy.reasons]
    rules = ", ".join(f"{name} {value:g}" for name, value in result.suite.rules.items())
    return "\n".join([*lines, "", f"rules: {rules}"])


def _row(policy: PolicyResult, result: ValidationResult) -> tuple[str, ...]:
    total = next((row for row in policy.tasks if row.category == TOTAL), None)
    memory = policy.memory
    n_bytes = memory.kv_bytes_logged or memory.kv_bytes_computed if memory else None
    means = [path.mean for path in policy.divergence if path.mean is not None]
    same = [path.top1.value for path in policy.divergence if path.top1.value is not None]
    is_baseline = policy.label == result.baseline
    return (
        policy.label,
        format_n_bytes(n_bytes) if n_bytes else UNKNOWN,
        _number(memory.ratio if memory else None, "{:.3f}"),
        _number(total.other.rate if total else None, "{:.1%}"),
        *(("", "", "") if is_baseline else _change(total)),
        _number(max(means, default=None), "{:.2g}"),
        _number(min(same, default=None), "{:.1%}"),
        *(_number(_slowest(policy, phase), "{:.2f}x") for phase in ("prefill", "decode")),
        str(policy.verdict),
    )


def _change(total: TaskRow | None) -> tuple[str, str, str]:
    if total is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    return (
        _number(total.change.value, "{:+.1%}"),
        f"{total.p_holm:.2g}",
        _number(total.minimum_detectable_effect, "{:.1%}"),
    )


def _slowest(policy: PolicyResult, phase: str) -> float | None:
    """The smallest ratio to the baseline's speed over the depths."""
    ratios = [point.ratio for point in policy.speed if point.phase == phase and point.ratio is not None]
    return min(ratios, default=None)


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
