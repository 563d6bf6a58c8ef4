"""Runs against a baseline run, sample by sample: what flipped, how sure that is, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from kvquant.errors import UsageError
from kvquant.evals.outcome import Outcome
from kvquant.evals.records import Run, SampleRecord
from kvquant.evals.statistics import (
    Interval,
    holm,
    mcnemar,
    minimum_detectable_effect,
    paired_difference,
    wilson,
)
from kvquant.evals.suite import Rules
from kvquant.evals.summary import TOTAL, categories, in_category


class Verdict(StrEnum):
    """What the rules of a suite make of a comparison (docs/evaluation.md)."""

    SAFE = "safe"
    COSTS = "costs"
    BROKEN = "broken"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Flips:
    """The samples two runs share. n_lost: right in the baseline only. n_gained: in the other run only."""

    n: int
    n_both: int
    n_lost: int
    n_gained: int

    @property
    def change(self) -> float | None:
        """Rate of the other run less that of the baseline; None without samples."""
        return (self.n_gained - self.n_lost) / self.n if self.n else None


@dataclass(frozen=True)
class Paired:
    """One category, or the total, of one run against the baseline. Rates and their uncertainties are None
    without shared samples.

    interval: of the change. p: exact McNemar. p_holm: adjusted for the number of runs compared with the
    baseline. mde: the minimum detectable effect, at a level that allows for the same number.
    """

    category: str
    flips: Flips
    baseline: Interval | None
    other: Interval | None
    interval: Interval | None
    p: float
    p_holm: float
    mde: float | None
    verdict: Verdict

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        flips = self.flips
        rates = (flips.n_both + flips.n_lost, flips.n_both + flips.n_gained)
        baseline, other = (count / flips.n if flips.n else None for count in rates)
        return {
            "category": self.category,
            **asdict(flips),
            "baseline": {"rate": baseline, "interval": self.baseline},
            "other": {"rate": other, "interval": self.other},
            "change": {"value": flips.change, "interval": self.interval},
            "p": self.p,
            "p_holm": self.p_holm,
            "minimum_detectable_effect": self.mde,
            "verdict": str(self.verdict),
        }


@dataclass(frozen=True)
class Comparison:
    """One run against the baseline: its categories, then the total. n_unpaired: samples only one has."""

    run: Run
    rows: tuple[Paired, ...]
    n_unpaired: int


def compare(baseline: Run, others: Sequence[Run], rules: Rules) -> list[Comparison]:
    """Compare each run with the baseline. Raises UsageError when one was asked other questions."""
    for other in others:
        check_comparable(baseline, other)
    names = [*categories(baseline), TOTAL]
    counted = [[count_flips(baseline, other, name) for name in names] for other in others]
    # For each category the p-values of all runs belong together: each is a chance to find a difference.
    p_values = [[mcnemar(flips.n_lost, flips.n_gained) for flips in row] for row in counted]
    adjusted = [holm(column) for column in zip(*p_values, strict=True)]
    return [
        Comparison(
            other,
            tuple(
                _paired(name, counted[i][j], p_values[i][j], adjusted[j][i], rules, len(others))
                for j, name in enumerate(names)
            ),
            len({s.id for s in baseline.samples} ^ {s.id for s in other.samples}),
        )
        for i, other in enumerate(others)
    ]


def check_comparable(first: Run, second: Run) -> None:
    """Raise UsageError unless both runs were asked the same questions and graded alike."""
    checks = (
        ("suite", first.info.suite, second.info.suite),
        ("version of the suite", first.info.suite_digest, second.info.suite_digest),
        ("seed", first.info.seed, second.info.seed),
    )
    for name, one, other in checks:
        if one != other:
            both = f"{first.folder} and {second.folder} differ in the {name}"
            raise UsageError(
                f"{both} ({str(one)[:12]}, {str(other)[:12]}); only answers to the same questions compare"
            )


def count_flips(baseline: Run, other: Run, category: str) -> Flips:
    """Pair the samples of a category by id and count."""
    right = {s.id: _is_right(s) for s in in_category(baseline.samples, category)}
    pairs = [(right[s.id], _is_right(s)) for s in in_category(other.samples, category) if s.id in right]
    return Flips(
        len(pairs), pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))
    )


def judge(flips: Flips, p: float, mde: float | None, rules: Rules) -> Verdict:
    """Apply the rules. A difference that was not found counts as none only where it would have been found."""
    change = flips.change
    if change is None:
        return Verdict.CANNOT_TELL
    if p <= rules.alpha:
        if change >= 0:
            return Verdict.SAFE
        return Verdict.BROKEN if -change >= rules.broken_loss else Verdict.COSTS
    found_none = mde is not None and mde <= rules.safe_loss and -change <= rules.safe_loss
    return Verdict.SAFE if found_none else Verdict.CANNOT_TELL


def _paired(name: str, flips: Flips, p: float, p_holm: float, rules: Rules, n_runs: int) -> Paired:
    n = flips.n
    observed = (flips.n_lost + flips.n_gained) / n if n else 0.0
    disagreement = max(rules.disagreement, observed)
    mde = minimum_detectable_effect(n, disagreement, rules.alpha / n_runs, rules.power)
    return Paired(
        category=name,
        flips=flips,
        baseline=wilson(flips.n_both + flips.n_lost, n),
        other=wilson(flips.n_both + flips.n_gained, n),
        interval=paired_difference(flips.n_lost, flips.n_gained, n),
        p=p,
        p_holm=p_holm,
        mde=mde,
        verdict=judge(flips, p_holm, mde, rules),
    )


def _is_right(sample: SampleRecord) -> bool:
    return sample.outcome is Outcome.RIGHT
