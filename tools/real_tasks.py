"""What validations of real models by tasks come to: a part of eval/results/real/README.md.

Each record of eval/results/real/tasks is the results.json of one `kvquant validate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvquant.assets.registry import models
from kvquant.policy.presets import measured_presets
from kvquant.results.comparison import TaskRow, Verdict, total_row
from kvquant.results.validation import PolicyResult, ValidationResult, read_result
from kvquant.tables import NONE, Table, markdown, percent, points, with_interval

RECORDS = Path(__file__).resolve().parent.parent / "eval/results/real/tasks"

INTRODUCTION = """The same questions under every policy, with answers paired with those under f16
(`kvquant validate`). *Lost* are right answers that became wrong, *finds* is the smallest change that so many
questions would have shown. Repeated: f16, asked again. Calibrated: with a transform of K."""


def records() -> dict[str, ValidationResult]:
    """Return the validations by the name of their file."""
    return read_records(RECORDS)


def read_records(folder: Path) -> dict[str, ValidationResult]:
    """Return the validations of a folder by the name of their file."""
    return {path.stem: read_result(path) for path in sorted(folder.glob("*.json"))}


def section() -> Iterator[str]:
    """Yield the lines of the page, none without records."""
    found = records()
    if found:
        yield from ("", "## Answers to tasks", "", INTRODUCTION)
    for name, result in found.items():
        yield from ("", f"### {model_name(result)}, {result.suite.about}", "")
        yield f"[Record](tasks/{name}.json)."
        yield from ("", markdown(table(result)))


def model_name(result: ValidationResult) -> str:
    """Return the name `kvquant models` has for the file."""
    known = {model.sha256: name for name, model in models().items()}
    return known.get(result.model.sha256, result.model.name)


def table(result: ValidationResult) -> Table:
    """Return a row for every policy, over all categories."""
    rows = []
    for policy in result.policies:
        if policy.verdict is Verdict.BASELINE:
            repeat = total_row(policy.repeat)
            rows += [] if repeat is None else [_row("f16, repeated", repeat, NONE)]
        elif policy.total is not None:
            rows.append(_row(policy_name(policy), policy.total, policy.verdict))
    head = ("policy", "questions", "right", "right in f16", "lost", "gained")
    return Table((*head, "change, points", "finds, points", "verdict"), tuple(rows), words=(8,))


def _row(name: str, row: TaskRow, verdict: str) -> tuple[str, ...]:
    finds = row.minimum_detectable_effect
    return (
        name,
        str(row.n),
        percent(row.other.rate),
        percent(row.baseline.rate),
        str(row.n_lost),
        str(row.n_gained),
        with_interval(points(row.change.value), row.change.interval, points),
        NONE if finds is None else f"{100 * finds:.1f}",
        verdict,
    )


def policy_name(policy: PolicyResult) -> str:
    """Return the policy in short: what a search found has too many rules for a table."""
    rules = policy.policy.partition("@")[0]
    searched = next((one for one in measured_presets() if one.policy == rules), None)
    name = rules.removeprefix("*:") if searched is None else f"the search's at {searched.of_f16:.3f}x"
    return name if policy.transform is None else f"{name}, calibrated"
