"""A validation in words: its sentences, the text for a terminal, and the whole report as Markdown."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kvquant.report import validation_tables as tables
from kvquant.report.transform import transform_line
from kvquant.results.comparison import Verdict, total_row
from kvquant.results.validation import Failure, PolicyResult, ValidationResult
from kvquant.tables import UNKNOWN, Table, escape_markdown, markdown, printable, text, times
from kvquant.units import format_n_bytes

N_LINES = 20
"""Of a log at its end: why something failed is mostly there."""

_N_BYTES = 8192


def validation_text(result: ValidationResult, width: int | None = None) -> str:
    """Return what a terminal shows: the verdicts, the reasons of each, and the rules they follow from.

    width: of the terminal, None for no limit.
    """
    lines = [
        f"{result.model.name}, suite {result.suite.name}, baseline {result.baseline}",
        "",
        text(tables.verdict_table(result), width),
        "",
    ]
    for policy in result.policies:
        lines.append(f"{policy.label}: {policy.verdict}")
        lines += [f"  {reason}" for reason in policy.reasons]
    lines += [f"transform {line}" for line in transform_lines(result)]
    rules = ", ".join(f"{name} {value:g}" for name, value in result.suite.rules.items())
    return printable("\n".join([*lines, "", f"rules: {rules}"]))


def failures_of(result: ValidationResult) -> Iterator[tuple[PolicyResult, Failure]]:
    """Yield everything that failed with its policy."""
    for policy in result.policies:
        for failure in policy.failures:
            yield policy, failure


def read_excerpts(result: ValidationResult, folder: Path) -> dict[str, str]:
    """Return the last lines of every log that a failure names, by its name in the document.

    A log that is missing or unreadable is left out, and so is a name that leads out of ``folder``.
    """
    names = {row.log for _, row in failures_of(result) if row.log is not None}
    found = {name: _end_of(folder, name) for name in sorted(names)}
    return {name: end for name, end in found.items() if end is not None}


def _end_of(folder: Path, name: str) -> str | None:
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _N_BYTES))
            end = file.read().decode("utf-8", "replace")
    except (OSError, ValueError):
        return None
    return "\n".join(end.splitlines()[-N_LINES:])


def title(result: ValidationResult) -> str:
    """What was validated, in one line."""
    return f"KV-cache policies on {result.model.name}"


def headline(result: ValidationResult) -> list[str]:
    """The outcome in a few sentences, the most important one first."""
    others = result.compared
    counts = Counter(policy.verdict for policy in others)
    if not others:
        return [f"Only the baseline, {result.baseline}, has been measured."]
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    noun = "policy" if len(others) == 1 else "policies"
    lines = [f"{len(others)} {noun} against {result.baseline}: {told}."]
    safe = [policy for policy in others if policy.verdict is Verdict.SAFE and policy.ratio is not None]
    if safe:
        best = min(safe, key=lambda policy: policy.ratio or 0.0)
        lines.append(f"The smallest safe one is {best.label}, with {times(best.ratio)} the memory.")
    return lines


def subject(result: ValidationResult) -> str:
    """What the numbers are of."""
    model, suite = result.model, result.suite
    return (
        f"{model.name} ({model.arch}, {model.n_layer} layers, {format_n_bytes(model.n_bytes)}), "
        f"suite {suite.name}: {suite.about}"
    )


def sure_lines(result: ValidationResult) -> list[str]:
    """How sure the answers are: the noise of the baseline, and what could not have been seen."""
    return [*_noise(result), *_detectable(result)]


def transform_lines(result: ValidationResult) -> list[str]:
    """The K transforms that policies were measured with, a line each."""
    used = dict.fromkeys(policy.transform for policy in result.policies if policy.transform is not None)
    return [transform_line(transform) for transform in used if transform is not None]


def memory_findings(result: ValidationResult) -> list[str]:
    """Where the sources of a cache's size disagree."""
    return [
        f"{policy.label}: {line}"
        for policy in result.policies
        if policy.memory is not None
        for line in policy.memory.findings
    ]


def note_lines(result: ValidationResult) -> list[str]:
    """How to read the columns and the verdicts, a line each."""
    rules = result.suite.rules
    lines = [
        "KL: divergence of the next token's distribution from the baseline's, in nats per token; 0 is no "
        "difference. Floor: the baseline against itself.",
        "Points: percentage points of right answers. lost, gained: samples right under the baseline only, "
        "under the policy only.",
        "p: exact McNemar test on these, adjusted for the number of policies (Holm). finds: the smallest "
        "change that such a run detects.",
        "Speed and memory are ratios to the baseline: 0.50x is half the memory, or half as fast. "
        "Verdicts show the slowest depth of a phase, and the path with the largest KL above its floor.",
        "Numbers in brackets or in small print are 95 % intervals; the uncertainty of a number without "
        "one is unknown. ? is unknown.",
    ]
    if {"alpha", "safe_loss", "broken_loss"} <= rules.keys():
        lines.append(
            f"Answers are safe when a loss above {rules['safe_loss']:.0%} would have been detected and was "
            f"not, broken from a loss of {rules['broken_loss']:.0%}, at p ≤ {rules['alpha']:g}. A baseline "
            "with too few right answers to lose that much says nothing."
        )
    if {"safe_kl", "broken_kl"} <= rules.keys():
        lines.append(
            f"KL above the floor is safe up to {rules['safe_kl']:g}, broken from {rules['broken_kl']:g} on."
        )
    if "safe_speed" in rules:
        lines.append(f"Speed is a cost if its whole interval is below {rules['safe_speed']:g}x.")
    return lines


def provenance_pairs(result: ValidationResult) -> list[tuple[str, str]]:
    """Where the numbers come from, nested names joined by dots."""
    model, suite = result.model, result.suite
    given = [
        ("model", f"{model.name}, sha256 {model.sha256}"),
        ("suite", f"{suite.name}, version {suite.digest}"),
        ("rules", ", ".join(f"{name} {value}" for name, value in suite.rules.items())),
    ]
    given += [("K transform", line) for line in transform_lines(result)]
    return given + list(_flat(result.provenance, ""))


def _noise(result: ValidationResult) -> list[str]:
    row = total_row(tables.repeat_rows(result))
    if row is None:
        return ["The baseline was not asked twice, so the noise of the answers themselves is unknown."]
    flips = row.n_lost + row.n_gained
    if flips == 0:
        return [f"Asked twice, the baseline gave the same {row.n} outcomes: the answers have no noise."]
    return [
        f"Asked twice, the baseline changed {flips} of {row.n} outcomes ({row.n_lost} lost, "
        f"{row.n_gained} gained): that much is noise."
    ]


def _detectable(result: ValidationResult) -> list[str]:
    totals = [total for policy in result.compared if (total := policy.total) is not None]
    if not totals:
        return []
    n = min(total.n for total in totals)
    effects = [total.minimum_detectable_effect for total in totals]
    known = [effect for effect in effects if effect is not None]
    power = result.suite.rules.get("power")
    how_often = "" if power is None else f" with probability {power:g}"
    if len(known) < len(effects):
        return [
            f"With {n} questions for each policy no change of any size would have been detected{how_often}."
        ]
    return [
        f"With {n} questions for each policy a change of {100 * max(known):.1f} points is "
        f"detected{how_often}; smaller ones may go unnoticed. Within one category it takes more: see the "
        "column “finds” below."
    ]


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}.{index}")
    elif isinstance(value, list | tuple):
        yield name, shlex.join(map(str, value)) if name.endswith("argv") else ", ".join(map(str, value))
    else:
        yield name, UNKNOWN if value is None else str(value)


def validation_markdown(result: ValidationResult, logs: Mapping[str, str]) -> str:
    """Return the text. logs: excerpts by the name that a failure gives (`read_excerpts`)."""
    return (
        "\n\n".join(
            part
            for part in (
                f"# {escape_markdown(title(result))}",
                escape_markdown(subject(result)),
                _bullets(headline(result)),
                markdown(tables.verdict_table(result)),
                *_reasons(result),
                *_answers(result),
                *_section("KL divergence per token, nats", tables.divergence_table(result)),
                *_section("Speed", tables.speed_table(result)),
                *_section("A fixed conversation", tables.chat_table(result)),
                *_section("Memory", tables.memory_table(result)),
                _bullets(memory_findings(result)),
                *_failures(result, logs),
                "## How to read the numbers",
                _bullets(note_lines(result)),
                "## Where this comes from",
                _bullets(f"{name}: {value}" for name, value in provenance_pairs(result)),
            )
            if part
        )
        + "\n"
    )


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def _section(heading: str, table: Table) -> list[str]:
    return [f"## {heading}", markdown(table)] if table.rows else []


def _reasons(result: ValidationResult) -> list[str]:
    lines = [f"{policy.label}: {line}" for policy in result.policies for line in policy.reasons]
    return ["## Why", _bullets(lines)] if lines else []


def _answers(result: ValidationResult) -> list[str]:
    parts = ["## Answers by category", _bullets(sure_lines(result))]
    for policy in result.compared:
        if policy.tasks:
            parts += [
                f"### {escape_markdown(policy.label)}",
                markdown(tables.task_table(policy.tasks)),
                _bullets(tables.reason_lines(policy.tasks)),
            ]
    repeated = tables.repeat_rows(result)
    if repeated:
        parts += ["### The baseline, asked twice", markdown(tables.task_table(repeated, "again"))]
    return [part for part in parts if part]


def _failures(result: ValidationResult, logs: Mapping[str, str]) -> list[str]:
    parts = []
    for policy, row in failures_of(result):
        log = "" if row.log is None else f" ({row.log})"
        parts.append(escape_markdown(f"{policy.label}, {row.part}: {row.what}{log}"))
        excerpt = printable(logs.get(row.log or "", ""))
        if excerpt:
            # Longer than any run of backticks in it, so that nothing inside can end the block.
            fence = "`" * (2 + max((len(run) for run in re.findall("`+", excerpt)), default=1))
            parts.append(f"{fence}text\n{excerpt}\n{fence}")
    return ["## What failed", *parts] if parts else []
