"""What one run says: per category and in all, how many samples had which outcome, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvquant.evals.outcome import Outcome
from kvquant.evals.records import Run, SampleRecord
from kvquant.evals.statistics import Interval, wilson

TOTAL = "total"


@dataclass(frozen=True)
class Summary:
    """One category, or the total. outcomes: of its samples; those with ERROR are unanswered."""

    category: str
    outcomes: dict[Outcome, int]

    @property
    def n(self) -> int:
        """Samples answered."""
        return sum(self.outcomes.values()) - self.n_unanswered

    @property
    def n_unanswered(self) -> int:
        """Samples the endpoint failed on."""
        return self.outcomes.get(Outcome.ERROR, 0)

    @property
    def n_right(self) -> int:
        """Samples answered right."""
        return self.outcomes.get(Outcome.RIGHT, 0)

    @property
    def rate(self) -> float | None:
        """Share of right answers; None without samples."""
        return self.n_right / self.n if self.n else None

    @property
    def interval(self) -> Interval | None:
        """Wilson interval of the rate; None without samples."""
        return wilson(self.n_right, self.n)

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "category": self.category,
            "n": self.n,
            "rate": self.rate,
            "interval": self.interval,
            "outcomes": {str(outcome): self.outcomes.get(outcome, 0) for outcome in Outcome},
        }


def categories(run: Run) -> list[str]:
    """The categories of a run in the suite's order."""
    return list(dict.fromkeys(test.category for test in run.info.tests))


def in_category(samples: Sequence[SampleRecord], category: str) -> list[SampleRecord]:
    """Return the samples of a category, all of them for TOTAL."""
    return [sample for sample in samples if category in {TOTAL, sample.category}]


def summarise(run: Run) -> list[Summary]:
    """Return a summary per category, then the total."""
    names = [*categories(run), TOTAL]
    asked = [*run.samples, *run.unanswered]
    return [Summary(name, Counter(s.outcome for s in in_category(asked, name))) for name in names]
