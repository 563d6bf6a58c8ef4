"""What one run says: per category and in all, how many samples had which outcome, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kvquant.evals.outcome import Outcome
from kvquant.evals.records import Run, SampleRecord
from kvquant.evals.statistics import wilson
from kvquant.results.comparison import TOTAL, CategorySummary


def asked(run: Run) -> tuple[SampleRecord, ...]:
    """Return every sample of a run, those that the endpoint failed on included."""
    return (*run.samples, *run.unanswered)


def is_right(sample: SampleRecord) -> bool:
    """Whether a sample was answered right."""
    return sample.outcome is Outcome.RIGHT


def categories(run: Run) -> list[str]:
    """The categories of a run in the suite's order."""
    return list(dict.fromkeys(test.category for test in run.info.tests))


def in_category(samples: Sequence[SampleRecord], category: str) -> list[SampleRecord]:
    """Return the samples of a category, all of them for TOTAL."""
    return [sample for sample in samples if category in {TOTAL, sample.category}]


def summarise(run: Run) -> tuple[CategorySummary, ...]:
    """Return a summary per category, then the total."""
    return tuple(_summary(name, in_category(asked(run), name)) for name in (*categories(run), TOTAL))


def _summary(category: str, samples: Sequence[SampleRecord]) -> CategorySummary:
    counts = Counter(sample.outcome for sample in samples)
    n, n_right = sum(sample.is_answered for sample in samples), counts[Outcome.RIGHT]
    return CategorySummary(
        category=category,
        n=n,
        rate=n_right / n if n else None,
        interval=wilson(n_right, n),
        outcomes={str(outcome): counts[outcome] for outcome in Outcome},
    )
