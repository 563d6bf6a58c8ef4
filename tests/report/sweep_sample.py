"""A sweep written by hand: two models, names that are hostile to a page, failures, a probe, others' rows."""

from __future__ import annotations

from dataclasses import replace

from kvquant.results.sweep import DecisionRow, Ending, SpeedAt, SweepResult
from kvquant.sweep.decide import decide
from sweep.small_sweeps import cell, journal_of, probe

HOSTILE = '</td><script>alert("x")</script>'


def _busy(share: float) -> tuple[SpeedAt, ...]:
    return (SpeedAt(0, 64, 200.0, 5, 20.0, 0.1, share), SpeedAt(64, 64, 90.0, 5, 11.0, 0.5, share))


def sweep_sample(share: float = 0.4) -> SweepResult:
    """share: of the processor time that the cells had."""
    journal = journal_of(
        cell("*:f16", points=_busy(share)),
        cell("*:q8_0", 8.0, n_threads=2),
        cell("*:q4_0", None, ending=Ending.CRASHED, detail=HOSTILE),
        cell("*:f16", 3.0, model=HOSTILE),
        probe("*:f16"),
        probe("*:q8_0", None, answered=None),
    )
    published = DecisionRow("their board", HOSTILE, "*:q4_0", "q4_0", source="theirs", kv_bytes=2**20)
    return decide(journal, {}, (published,))


def empty_sweep() -> SweepResult:
    """Nothing measured yet."""
    return replace(sweep_sample(), rows=(), choices=(), cells=(), probes=(), boards=())
