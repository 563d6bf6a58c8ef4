"""Compared and ranked runs: their tables, and the comparison as text."""

from __future__ import annotations

from collections.abc import Sequence

from kvquant.report.validation_tables import reason_lines, task_table
from kvquant.results.comparison import CategorySummary, ComparedRun, Comparison, Ranking
from kvquant.tables import NONE, UNKNOWN, Table, percent, printable, text, with_interval


def comparison_text(found: Comparison, width: int | None = None) -> str:
    """Return what a terminal shows: the baseline, then every run by itself and against it.

    width: of the terminal, None for no limit.
    """
    head = f"baseline {found.baseline}: {found.model}, suite {found.suite}"
    blocks = [f"{head}\n{text(summary_table(found.summary), width)}"]
    blocks += [_compared(run, found, width) for run in found.comparisons]
    return printable("\n\n".join(blocks))


def _compared(run: ComparedRun, found: Comparison, width: int | None) -> str:
    lines = [f"{run.run}: {run.model}", text(summary_table(run.summary), width), "against the baseline"]
    if run.n_unpaired:
        lines[-1] += f"; left out, because only one of the two has them: {run.n_unpaired} samples"
    lines.append(text(task_table(run.rows, "this run"), width))
    lines += reason_lines(run.rows)
    rules, safe = found.rules, f"{100 * found.rules['safe_loss']:g} points"
    lines.append(
        f"'finds' is the smallest change detected with probability {rules['power']:g} where at least "
        f"{rules['disagreement']:.0%} of samples differ; safe needs it to be at most {safe}, and a baseline "
        "with that much to lose"
    )
    return "\n".join(lines)


def summary_table(summaries: Sequence[CategorySummary]) -> Table:
    """One run by itself: rates, and what the answers that were not right were."""
    rows = tuple(
        (
            entry.category,
            str(entry.n),
            str(entry.n_right),
            with_interval(percent(entry.rate), entry.interval, percent),
            ", ".join(
                f"{count} {'unanswered' if outcome == 'error' else outcome}"
                for outcome, count in entry.outcomes.items()
                if count and outcome != "right"
            ),
        )
        for entry in summaries
    )
    return Table(("category", "n", "right", "rate", "otherwise"), rows, words=(4,))


def ranking_table(ranking: Ranking) -> Table:
    """Runs in the order of their score."""
    rows = tuple(
        (
            entry.run,
            "unfinished" if entry.quality is None else f"{entry.quality:.2f} of {entry.most_quality:g}",
            with_interval(f"{entry.wall_seconds:.2f}", entry.wall_seconds_interval, _two_decimals),
            NONE if entry.score is None else f"{entry.score:.1f}",
        )
        for entry in ranking.ranking
    )
    return Table(("run", "quality", "seconds", "score"), rows)


def routing_table(ranking: Ranking) -> Table:
    """Which run to ask in each category."""
    rows = tuple(
        (
            *(route.category, route.run, percent(route.rate), f"{route.wall_seconds:.2f}"),
            ", ".join(route.level) or NONE,
        )
        for route in ranking.routing
    )
    return Table(("category", "best run", "rate", "seconds", "indistinguishable from it"), rows, words=(1, 4))


def _two_decimals(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"
