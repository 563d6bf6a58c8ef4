"""Runs against a baseline run, sample by sample: what flipped, how sure that is, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from kvquant.errors import UsageError
from kvquant.evals.records import Run, SampleRecord
from kvquant.evals.statistics import holm, mcnemar, minimum_detectable_effect, paired_difference, wilson
from kvquant.evals.suite import Rules, load_suite
from kvquant.evals.summary import asked, categories, in_category, is_right, summarise
from kvquant.results.comparison import TOTAL, ComparedRun, Comparison, Estimate, Rate, TaskRow, Verdict

_ROUNDING = 1e-9
"""What a product of a rate and a number of samples may be off by."""


@dataclass(frozen=True)
class Flips:
    """The samples that two runs both have an answer to, by whether it is right.

    n_lost: right in the baseline only. n_gained: in the other run only.
    """

    n: int
    n_both: int
    n_lost: int
    n_gained: int

    @property
    def n_right(self) -> int:
        """Right in the baseline: what there is to lose."""
        return self.n_both + self.n_lost

    @property
    def change(self) -> float | None:
        """Rate of the other run less that of the baseline; None without samples."""
        return (self.n_gained - self.n_lost) / self.n if self.n else None


def comparison_of(baseline: Run, others: Sequence[Run], rules: Rules) -> Comparison:
    """Return everything that runs say beside a baseline. Raises UsageError as `compare` does."""
    return Comparison(
        baseline=str(baseline.folder),
        rules=asdict(rules),
        summary=summarise(baseline),
        comparisons=tuple(compare(baseline, others, rules)),
        model=baseline.info.model,
        suite=baseline.info.suite,
    )


def rules_of(run: Run, suite: str | None = None) -> Rules:
    """Return the rules of a named suite or suite file, else those the run was made with.

    A run of an older version has none of its own and takes those that its suite has now. Raises UsageError
    when there is no such suite.
    """
    if suite is None and run.info.rules is not None:
        return run.info.rules
    return load_suite(suite or run.info.suite).rules


def compare(baseline: Run, others: Sequence[Run], rules: Rules) -> list[ComparedRun]:
    """Compare each run with the baseline. Raises UsageError when one was asked other questions."""
    for other in others:
        check_comparable(baseline, other)
    names = [*categories(baseline), TOTAL]
    paired = [{name: pairs(baseline, other, name) for name in names} for other in others]
    counted = [[count_flips(found) for found in by_name.values()] for by_name in paired]
    # For each category the p-values of all runs belong together: each is a chance to find a difference.
    p_values = [[mcnemar(flips.n_lost, flips.n_gained) for flips in row] for row in counted]
    adjusted = [holm(column) for column in zip(*p_values, strict=True)]
    return [
        ComparedRun(
            run=str(other.folder),
            n_unpaired=len(
                {sample.id for sample in asked(baseline)} ^ {sample.id for sample in asked(other)}
            ),
            summary=summarise(other),
            rows=tuple(
                _row(
                    name,
                    counted[i][j],
                    len(paired[i][name]) - counted[i][j].n,
                    (p_values[i][j], adjusted[j][i]),
                    rules,
                    len(others),
                )
                for j, name in enumerate(names)
            ),
            model=other.info.model,
            n_unanswered=len(paired[i][TOTAL]) - counted[i][-1].n,
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
                f"{both} ({str(one)[:12]}, {str(other)[:12]}); only answers to the same questions "
                "can be compared"
            )


def pairs(baseline: Run, other: Run, category: str) -> list[tuple[SampleRecord, SampleRecord]]:
    """Return the samples of a category that both runs have, paired by id, answered or not."""
    of_baseline = {sample.id: sample for sample in in_category(asked(baseline), category)}
    return [
        (of_baseline[sample.id], sample)
        for sample in in_category(asked(other), category)
        if sample.id in of_baseline
    ]


def count_flips(found: Sequence[tuple[SampleRecord, SampleRecord]]) -> Flips:
    """Count the pairs that both runs have an answer to."""
    right = [(is_right(a), is_right(b)) for a, b in found if a.is_answered and b.is_answered]
    return Flips(
        len(right), right.count((True, True)), right.count((True, False)), right.count((False, True))
    )


def judge(flips: Flips, p: float, mde: float | None, rules: Rules, n_runs: int = 1) -> tuple[Verdict, str]:
    """Apply the rules; return the verdict and, where it cannot tell, why and what to change.

    A loss that was found counts. That none was found counts as none only where it would have been found: with
    enough samples, and with enough of them right in the baseline to be lost.
    """
    change = flips.change
    if change is None:
        return Verdict.CANNOT_TELL, "no sample has an answer in both runs"
    found = p <= rules.alpha
    if found and change < 0:
        return (Verdict.BROKEN if -change >= rules.broken_loss else Verdict.COSTS), ""
    reason = _too_little_right(flips, mde, rules, n_runs)
    if not reason and not found:
        reason = _unsure(change, mde, rules)
    return (Verdict.CANNOT_TELL, reason) if reason else (Verdict.SAFE, "")


def least_right(n: int, mde: float | None, rules: Rules, n_runs: int) -> int:
    """Return how many of ``n`` pairs the baseline must have right for a verdict of safe to rest on anything.

    With fewer, the loss of every right answer would not come to ``safe_loss``, or not to the change that such
    a run finds, or the exact test (2^(1 - n_right), adjusted for ``n_runs``) would put it down to chance. The
    number exceeds ``n`` where no baseline would be enough.
    """
    by_rate = math.ceil(n * (1.0 if mde is None else mde) - _ROUNDING)
    by_chance = math.ceil(1 + math.log2(n_runs / rules.alpha) - _ROUNDING)
    return max(least_to_lose(n, rules), by_rate, by_chance)


def least_to_lose(n: int, rules: Rules) -> int:
    """Return how many of ``n`` pairs must be right before ``safe_loss`` can be lost at all."""
    return max(1, math.ceil(n * rules.safe_loss - _ROUNDING))


def _too_little_right(flips: Flips, mde: float | None, rules: Rules, n_runs: int) -> str:
    """Why nothing follows from a loss that was not found, as the baseline has too little to lose."""
    has = f"the baseline has {flips.n_right} of {flips.n} right"
    if flips.n_right < least_to_lose(flips.n, rules):
        return (
            f"{has}, too few to lose {100 * rules.safe_loss:g} points; take an easier suite or another "
            "model, or check that the model is asked in its own prompt format"
        )
    if flips.n_right < least_right(flips.n, mde, rules, n_runs):
        return f"{has}, too few for the loss of them all to be told from chance; ask more samples"
    return ""


def _unsure(change: float, mde: float | None, rules: Rules) -> str:
    """Why a change that was not found may be there."""
    if mde is None or mde > rules.safe_loss:
        finds = "no change" if mde is None else f"only a change of {100 * mde:.1f} points"
        needs = f"safe needs {100 * rules.safe_loss:g} points"
        return f"{finds} would have been found, {needs}; ask more samples"
    if -change > rules.safe_loss:
        return f"{-100 * change:.1f} points were lost, perhaps by chance; ask more samples"
    return ""


def _row(
    name: str,
    flips: Flips,
    n_unanswered: int,
    p_values: tuple[float, float],
    rules: Rules,
    n_runs: int,
) -> TaskRow:
    n = flips.n
    p, p_holm = p_values
    observed = (flips.n_lost + flips.n_gained) / n if n else 0.0
    disagreement = max(rules.disagreement, observed)
    mde = minimum_detectable_effect(n, disagreement, rules.alpha / n_runs, rules.power)
    verdict, reason = judge(flips, p_holm, mde, rules, n_runs)
    return TaskRow(
        category=name,
        n=n,
        n_both=flips.n_both,
        n_lost=flips.n_lost,
        n_gained=flips.n_gained,
        baseline=_rate(flips.n_right, n),
        other=_rate(flips.n_both + flips.n_gained, n),
        change=Estimate(flips.change, paired_difference(flips.n_lost, flips.n_gained, n)),
        p=p,
        p_holm=p_holm,
        minimum_detectable_effect=mde,
        verdict=verdict,
        n_unanswered=n_unanswered,
        reason=reason,
    )


def _rate(n_right: int, n: int) -> Rate:
    return Rate(n_right / n if n else None, wilson(n_right, n))
