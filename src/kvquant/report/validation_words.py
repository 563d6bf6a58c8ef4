"""A validation in sentences, and where its numbers come from."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from kvquant.report.numbers import times
from kvquant.report.tables import UNKNOWN
from kvquant.report.validation_document import TOTAL, Document, compared, each, ratio_of, total_of
from kvquant.units import format_n_bytes


def title(document: Document) -> str:
    """What was validated, in one line."""
    return f"KV-cache policies on {document['model']['name']}"


def headline(document: Document) -> list[str]:
    """The outcome in a few sentences, the most important one first."""
    others = compared(document)
    counts = Counter(policy["verdict"] for policy in others)
    if not others:
        return [f"Only the baseline, {document['baseline']}, has been measured."]
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    noun = "policy" if len(others) == 1 else "policies"
    lines = [f"{len(others)} {noun} against {document['baseline']}: {told}."]
    safe = [policy for policy in others if policy["verdict"] == "safe" and ratio_of(policy) is not None]
    if safe:
        best = min(safe, key=lambda policy: ratio_of(policy) or 0.0)
        lines.append(f"The smallest safe one is {best['label']}, with {times(ratio_of(best))} the memory.")
    return lines


def subject(document: Document) -> str:
    """What the numbers are of."""
    model, suite = document["model"], document["suite"]
    return (
        f"{model['name']} ({model['arch']}, {model['n_layer']} layers, {format_n_bytes(model['n_bytes'])}), "
        f"suite {suite['name']}: {suite['about']}"
    )


def sure_lines(document: Document) -> list[str]:
    """How sure the answers are: the noise of the baseline, and what could not have been seen."""
    return [*_noise(document), *_detectable(document)]


def memory_findings(document: Document) -> list[str]:
    """Where the sources of a cache's size disagree."""
    measured = [policy for policy in document["policies"] if policy["memory"] is not None]
    return [f"{policy['label']}: {line}" for policy in measured for line in policy["memory"]["findings"]]


def note_lines(document: Document) -> list[str]:
    """How to read the columns and the verdicts, a line each."""
    rules = document["suite"]["rules"]
    lines = [
        "KL: of the next token's distribution from the baseline's, in nats per token; 0 is no difference. "
        "Floor: the baseline against itself.",
        "Points: percentage points of right answers. lost, gained: samples right under the baseline only, "
        "under the policy only.",
        "p: exact McNemar test on these, adjusted for the number of policies (Holm). finds: the smallest "
        "change such a run would have shown.",
        "Speed and memory are ratios to the baseline: 0.50x is half the memory, or half as fast.",
        "Numbers in brackets or in small print are 95 % intervals; a number without one has no known "
        "uncertainty. ? is not known.",
    ]
    if {"alpha", "safe_loss", "broken_loss"} <= rules.keys():
        lines.append(
            f"Answers are safe when a loss above {rules['safe_loss']:.0%} would have shown and did not, "
            f"broken from a loss of {rules['broken_loss']:.0%}, at p ≤ {rules['alpha']:g}."
        )
    if {"safe_kl", "broken_kl"} <= rules.keys():
        lines.append(
            f"KL above the floor is safe up to {rules['safe_kl']:g}, broken from {rules['broken_kl']:g} on."
        )
    if "safe_speed" in rules:
        lines.append(f"Speed is a cost where its whole interval lies below {rules['safe_speed']:g}x.")
    return lines


def provenance_pairs(document: Document) -> list[tuple[str, str]]:
    """Where the numbers come from, nested names joined by dots."""
    model, suite = document["model"], document["suite"]
    given = [
        ("model", f"{model['name']}, sha256 {model['sha256']}"),
        ("suite", f"{suite['name']}, version {suite['digest']}"),
        ("rules", ", ".join(f"{name} {value}" for name, value in suite["rules"].items())),
    ]
    return given + list(_flat(document["provenance"], ""))


def _noise(document: Document) -> list[str]:
    rows = [row for _, row in each(document, "repeat") if row["category"] == TOTAL]
    if not rows:
        return ["The baseline was not asked twice, so the noise of the answers themselves is unknown."]
    (row,) = rows[:1]
    flips = row["n_lost"] + row["n_gained"]
    if flips == 0:
        return [
            f"Asked twice, the baseline gave the same {row['n']} outcomes: "
            "the answers have no noise of their own."
        ]
    return [
        f"Asked twice, the baseline changed {flips} of {row['n']} outcomes ({row['n_lost']} lost, "
        f"{row['n_gained']} gained): so much is noise."
    ]


def _detectable(document: Document) -> list[str]:
    totals = [total for policy in compared(document) if (total := total_of(policy)) is not None]
    if not totals:
        return []
    n = min(total["n"] for total in totals)
    effects = [total["minimum_detectable_effect"] for total in totals]
    power = document["suite"]["rules"].get("power")
    how_often = "" if power is None else f" with probability {power:g}"
    if None in effects:
        return [f"With {n} questions for each policy no change of any size would have been found{how_often}."]
    return [
        f"With {n} questions for each policy a change of {100 * max(effects):.1f} points is found"
        f"{how_often}; smaller ones may be there and not show. Within one category it takes more: the column "
        "“finds” below."
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
