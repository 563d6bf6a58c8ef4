"""How fast real models are under cache policies, by depth: a part of eval/results/real/README.md.

Each record of eval/results/real/speed is the results.json of one `kvquant validate` with a suite of speeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvquant.results.comparison import Verdict
from kvquant.results.validation import PolicyResult, Speed, ValidationResult
from kvquant.tables import NONE, Table, markdown, number, times, with_interval
from real_tasks import model_name, policy_name, read_records

RECORDS = Path(__file__).resolve().parent.parent / "eval/results/real/speed"

INTRODUCTION = """llama-bench in the patched build, policies taking turns: the ratio of tokens per second to
those of f16 in the same round, its median and, of enough rounds, its interval; for f16 the tokens per second,
on one thread of a shared machine, which say little beyond it. At a depth, so many tokens are in the cache
before. Differences of a tenth are noise here."""


def records() -> dict[str, ValidationResult]:
    """Return the validations by the name of their file."""
    return read_records(RECORDS)


def section() -> Iterator[str]:
    """Yield the lines of the page, none without records."""
    found = records()
    if found:
        yield from ("", "## Speed at depth", "", INTRODUCTION)
    for name, result in found.items():
        yield from ("", f"### {model_name(result)}, speed", "", f"[Record](speed/{name}.json).")
        yield from ("", markdown(table(result)))


def table(result: ValidationResult) -> Table:
    """Return a row for every policy, a column for every phase and depth."""
    points = dict.fromkeys((speed.phase, speed.depth) for one in result.policies for speed in one.speed)
    rows = [
        (policy_name(policy), *(_cell(policy, phase, depth) for phase, depth in points))
        for policy in result.policies
    ]
    return Table(("policy", *(f"{phase} at {depth:,}" for phase, depth in points)), tuple(rows))


def _cell(policy: PolicyResult, phase: str, depth: int) -> str:
    found = next((one for one in policy.speed if (one.phase, one.depth) == (phase, depth)), None)
    if found is None:
        return NONE
    return f"{number(found.tokens_per_second)}/s" if policy.verdict is Verdict.BASELINE else _ratio(found)


def _ratio(speed: Speed) -> str:
    return with_interval(times(speed.ratio), speed.interval, times)
