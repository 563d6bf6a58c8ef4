"""Rounds of speed measurements summed up: medians, and ratios to the baseline of the same round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from kvquant.evals.speed import Phase, SpeedRound
from kvquant.evals.statistics import Interval, median_interval


@dataclass(frozen=True)
class SpeedRow:
    """One policy, phase and depth.

    tokens_per_second: the median over its rounds. ratio: the median over the rounds that the baseline has too
    of its speed over the baseline's, None without such a round. interval: of the ratio, None where the rounds
    are too few for one.
    """

    label: str
    phase: Phase
    depth: int
    tokens_per_second: float
    ratio: float | None
    interval: Interval | None
    n_rounds: int

    def document(self) -> dict[str, Any]:
        """The JSON form, without the label."""
        return {
            "phase": self.phase,
            "depth": self.depth,
            "tokens_per_second": self.tokens_per_second,
            "ratio": self.ratio,
            "interval": self.interval,
            "n_rounds": self.n_rounds,
        }


def speed_rows(rounds: Iterable[SpeedRound], baseline: str) -> list[SpeedRow]:
    """Sum up rounds of several policies, in any order; ``baseline`` is a label.

    Labels come in the order of their first round, then prefill before decode, then by depth. A round that
    was measured twice counts as it was last measured. The baseline's own ratio is 1 and has no interval.
    """
    speeds: dict[str, dict[tuple[Phase, int], dict[int, float]]] = {}
    for measured in rounds:
        of_label = speeds.setdefault(measured.label, {})
        for point in measured.points:
            of_label.setdefault((point.phase, point.depth), {})[measured.index] = point.tokens_per_second
    reference = speeds.get(baseline, {})
    return [
        _row(label, key, by_round, reference.get(key, {}), label == baseline)
        for label, of_label in speeds.items()
        for key, by_round in sorted(of_label.items(), key=lambda item: (item[0][0] == "decode", item[0][1]))
    ]


def _row(
    label: str,
    key: tuple[Phase, int],
    by_round: dict[int, float],
    reference: dict[int, float],
    is_baseline: bool,
) -> SpeedRow:
    ratios = [speed / reference[index] for index, speed in by_round.items() if index in reference]
    return SpeedRow(
        label=label,
        phase=key[0],
        depth=key[1],
        tokens_per_second=median(by_round.values()),
        ratio=median(ratios) if ratios else None,
        interval=None if is_baseline else median_interval(ratios),
        n_rounds=len(by_round),
    )
