"""From records to the table that engineers decide from: best settings, medians, the Pareto front, jobs under
RAM.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from kvquant.documents import to_document
from kvquant.results.sweep import (
    TRANSFORMED,
    Board,
    CellRecord,
    Choice,
    DecisionRow,
    Ending,
    ProbeRecord,
    Quality,
    SpeedAt,
    SweepResult,
    SweptModel,
)
from kvquant.sweep.journal import Journal
from kvquant.sweep.plan import SweepPlan, canonical, policy_digest, policy_label
from kvquant.sweep.quality import ByModel, quality_of
from kvquant.units import format_n_bytes, parse_n_bytes

ENDPOINT = "as served"
"""The policy of an endpoint: its own affair."""

AS_FAST = 0.97
"""Settings that decode at least so fast beside the fastest are as good; the one with the fewest threads is
taken.
"""

BROKEN_KL = 0.5
"""Nats a token from which a policy is recommended for nothing (docs/evaluation.md)."""

Way = tuple[int | None, str, str]
"""Threads, cores, flash attention."""


def decide(journal: Journal, known: ByModel, published: Sequence[DecisionRow] = ()) -> SweepResult:
    """Return everything a sweep says so far."""
    start = journal.starts[-1]
    plan = start.plan
    rows: list[DecisionRow] = []
    for board in journal.boards:
        of_board = [
            row for model in _models(journal, board) for row in _rows(plan, journal, board, model, known)
        ]
        rows += [replace(row, pareto=on_front(row, of_board)) for row in of_board]
    return SweepResult(
        plan=to_document(plan),
        boards=journal.boards,
        rows=(*rows, *published),
        choices=choices(rows, _sizes(plan, journal.boards), journal.probes),
        cells=journal.cells,
        probes=journal.probes,
        provenance=start.provenance,
    )


def _models(journal: Journal, board: Board) -> list[str]:
    """The models that a board has records of, in the order of the plan, then of the records."""
    names = [record.setting.model for record in journal.records.values() if record.board == board.name]
    planned = [*journal.starts[-1].plan.models, *(entry.name for entry in journal.starts[-1].plan.endpoint)]
    return [name for name in dict.fromkeys((*planned, *names)) if name in names]


def _rows(plan: SweepPlan, journal: Journal, board: Board, model: str, known: ByModel) -> list[DecisionRow]:
    cells = [cell for cell in journal.cells if (cell.board, cell.setting.model) == (board.name, model)]
    probes = {
        probe.setting.variant: probe
        for probe in journal.probes
        if (probe.board, probe.setting.model) == (board.name, model)
    }
    settings = {probe.setting.variant: probe.setting for probe in probes.values()}
    settings = {cell.setting.variant: cell.setting for cell in cells} | settings
    done = {variant: _done(cells, variant) for variant in settings}
    depth = common_depth([found for found in done.values() if found])
    swept = next((entry for entry in board.models if entry.name == model), None)
    sha256, first = swept.sha256 if swept else None, next(iter(settings))
    rows = []
    for variant, setting in settings.items():
        policy, label = setting.policy, _label(plan, setting.policy)
        # What folders say of a policy they say of it without a transform.
        plain = setting.transform is None
        quality = quality_of(known, sha256, _served(plan, model), policy) if plain else Quality()
        row = DecisionRow(
            board=board.name,
            model=model,
            policy=policy or ENDPOINT,
            label=label if plain else f"{label} {TRANSFORMED}",
            sha256=sha256,
            transform=setting.transform,
            policy_digest=policy_digest(policy) if policy else None,
            quality=quality,
            n_cells=len(done[variant]),
            problems=Counter(
                str(cell.ending)
                for cell in cells
                if cell.setting.variant == variant and cell.ending is not Ending.DONE
            ),
        )
        row = _with_file(row, swept)
        row = _with_speed(row, done[variant], done[first], depth)
        rows.append(_with_probe(row, probes.get(variant)))
    return rows


def _served(plan: SweepPlan, name: str) -> str:
    """What an endpoint calls its model, by which runs of `kvquant eval` name it too."""
    entry = plan.endpoint_named(name)
    return entry.model or name if entry else name


def _label(plan: SweepPlan, policy: str | None) -> str:
    """A policy as the plan calls it, else its text."""
    if policy is None:
        return ENDPOINT
    named = {canonical(text): policy_label(text) for text in plan.policies}
    return named.get(policy, policy.removeprefix("*:"))


def _done(cells: Iterable[CellRecord], variant: str | None) -> list[CellRecord]:
    return [
        cell
        for cell in cells
        if cell.setting.variant == variant and cell.ending is Ending.DONE and cell.points
    ]


def common_depth(groups: Sequence[Sequence[CellRecord]]) -> int | None:
    """Return the deepest depth at which every group of cells was measured."""
    depths = [{point.depth for cell in cells for point in cell.points} for cells in groups]
    common = set.intersection(*depths) if depths else set()
    return max(common, default=None)


def way_of(cell: CellRecord) -> Way:
    """How a cell was run, apart from what it ran."""
    return cell.setting.n_threads, cell.setting.cpus, cell.setting.flash_attn


def best_way(cells: Sequence[CellRecord], depth: int) -> Way | None:
    """Return the threads, cores and flash attention whose median decode at a depth is highest; of those
    within AS_FAST of it, the one with the fewest threads.
    """
    speeds = {
        way: speed
        for way in dict.fromkeys(map(way_of, cells))
        if (speed := _median(_points(cells, way, depth), lambda point: point.decode)) is not None
    }
    if not speeds:
        return None
    fast = [way for way, speed in speeds.items() if speed >= AS_FAST * max(speeds.values())]
    return min(fast, key=lambda way: (way[0] is None, way[0] or 0, -speeds[way]))


def _with_file(row: DecisionRow, model: SweptModel | None) -> DecisionRow:
    if model is None:
        return row
    return replace(row, file_bytes=model.n_bytes, bits_per_weight=model.bits_per_weight)


def _with_speed(
    row: DecisionRow, cells: Sequence[CellRecord], baseline: Sequence[CellRecord], depth: int | None
) -> DecisionRow:
    way = None if depth is None else best_way(cells, depth)
    if way is None or depth is None:
        return row
    of_way = [cell for cell in cells if way_of(cell) == way]
    n_ctx = max(cell.setting.n_ctx for cell in of_way)
    largest = [cell for cell in of_way if cell.setting.n_ctx == n_ctx]
    buffers = next((cell.buffers for cell in largest if cell.buffers is not None), None)
    ratios = [
        mine / theirs
        for cell in of_way
        for other in baseline
        if (other.round, other.setting.n_ctx, way_of(other)) == (cell.round, cell.setting.n_ctx, way)
        and (mine := _decode(cell, depth)) is not None
        and (theirs := _decode(other, depth)) is not None
    ]
    shallow, deep = _points(cells, way, 0), _points(cells, way, depth)
    peaks = [cell.peak_rss_bytes for cell in largest if cell.peak_rss_bytes is not None]
    celsius = [
        cell.watched.max_celsius for cell in of_way if cell.watched and cell.watched.max_celsius is not None
    ]
    compute = None
    if buffers is not None and buffers.compute is not None:
        compute = buffers.compute + (buffers.output or 0)
    return replace(
        row,
        n_threads=way[0],
        cpus=way[1],
        flash_attn=way[2],
        n_ctx=n_ctx,
        depth=depth,
        prefill_0=_median(shallow, lambda point: point.prefill),
        decode_0=_median(shallow, lambda point: point.decode),
        prefill_deep=_median(deep, lambda point: point.prefill),
        decode_deep=_median(deep, lambda point: point.decode),
        decode_ratio=median(ratios) if ratios else None,
        ttft_seconds=_median(deep, lambda point: point.ttft_seconds),
        cpu_share=_median(deep, lambda point: point.cpu_share),
        model_bytes=buffers.model if buffers else None,
        kv_bytes=buffers.kv if buffers else None,
        compute_bytes=compute,
        host_bytes=buffers.total if buffers else None,
        peak_rss_bytes=max(peaks, default=None),
        max_celsius=max(celsius, default=None),
    )


def _with_probe(row: DecisionRow, probe: ProbeRecord | None) -> DecisionRow:
    if probe is None:
        return row
    return replace(
        row,
        loaded_ctx=probe.loaded,
        answered_ctx=probe.answered,
        stable_ctx=probe.stable,
        predicted_ctx=probe.predicted,
    )


def _points(cells: Iterable[CellRecord], way: Way, depth: int) -> list[SpeedAt]:
    return [point for cell in cells if way_of(cell) == way and (point := cell.at(depth)) is not None]


def _median(points: Iterable[SpeedAt], read: Callable[[SpeedAt], float | None]) -> float | None:
    known = [value for point in points if (value := read(point)) is not None]
    return median(known) if known else None


def _decode(cell: CellRecord, depth: int) -> float | None:
    point = cell.at(depth)
    return None if point is None else point.decode


def on_front(row: DecisionRow, rows: Sequence[DecisionRow]) -> bool | None:
    """Whether no other row is as good in decode at depth, host memory and quality, and better in one of them.

    Quality is the share of right answers, or, between policies of one model, the KL divergence; rows whose
    quality cannot be compared do not beat each other. None for a row without quality, speed or memory.
    """
    if (
        row.decode_deep is None
        or row.host_bytes is None
        or (row.quality.rate, row.quality.kl) == (None, None)
    ):
        return None
    return not any(_beats(other, row) for other in rows if other is not row)


def _beats(other: DecisionRow, row: DecisionRow) -> bool:
    if other.decode_deep is None or other.host_bytes is None:
        return False
    quality = _better(other, row)
    if quality is None or row.decode_deep is None or row.host_bytes is None:
        return False
    gains = (other.decode_deep - row.decode_deep, row.host_bytes - other.host_bytes, quality)
    return min(gains) >= 0 and max(gains) > 0


def _better(other: DecisionRow, row: DecisionRow) -> float | None:
    """By how much the quality of one row is above the other's, None where they cannot be compared."""
    if other.quality.rate is not None and row.quality.rate is not None:
        return other.quality.rate - row.quality.rate
    if other.model == row.model and other.quality.kl is not None and row.quality.kl is not None:
        return row.quality.kl - other.quality.kl
    return None


def _sizes(plan: SweepPlan, boards: Sequence[Board]) -> list[int]:
    """The amounts of memory that jobs are chosen for: the plan's, else what the boards have."""
    if plan.ram:
        return [parse_n_bytes(size) for size in plan.ram]
    found = {board.machine.get("memory_n_bytes") for board in boards}
    return sorted(size for size in found if isinstance(size, int))


def choices(
    rows: Sequence[DecisionRow], sizes: Sequence[int], probes: Sequence[ProbeRecord]
) -> tuple[Choice, ...]:
    """Return what to take for each job within each amount of memory; policies known to be broken for none."""
    sound = [row for row in rows if row.quality.kl is None or row.quality.kl < BROKEN_KL]
    needs = {
        (probe.board, probe.setting.model, probe.setting.variant): probe.need_n_bytes for probe in probes
    }

    def at_stable(row: DecisionRow) -> int | None:
        need = needs.get((row.board, row.model, row.variant))
        return None if need is None or row.compute_bytes is None else need + row.compute_bytes

    def at_largest(row: DecisionRow) -> int | None:
        return row.host_bytes

    jobs: Mapping[
        str, tuple[Callable[[DecisionRow], float | None], str, Callable[[DecisionRow], int | None]]
    ] = {
        "fast answers": (lambda row: row.decode_deep, "decodes {:.3g} tokens/s at depth", at_largest),
        "best answers": (lambda row: row.quality.rate, "{:.1%} of the answers right", at_largest),
        "tool calls": (lambda row: row.quality.tool_rate, "{:.1%} of the tool calls right", at_largest),
        "quality and speed": (lambda row: row.quality.composite, "composite {:.3g}", at_largest),
        "long texts": (lambda row: row.stable_ctx, "answers at {:.0f} tokens, every time", at_stable),
    }
    found: list[Choice] = []
    for job, (merit, why, need) in jobs.items():
        known = [row for row in sound if merit(row) is not None]
        if known:
            found += [_choice(job, size, known, merit, why, need) for size in sizes]
        else:
            found.append(Choice(job, None, None, None, None, "not measured"))
    return tuple(found)


def _choice(
    job: str,
    size: int,
    rows: Sequence[DecisionRow],
    merit: Callable[[DecisionRow], float | None],
    why: str,
    need: Callable[[DecisionRow], int | None],
) -> Choice:
    fitting = [row for row in rows if (n_bytes := need(row)) is not None and n_bytes <= size]
    if not fitting:
        least = min((n_bytes for row in rows if (n_bytes := need(row)) is not None), default=None)
        needs = "memory is unknown" if least is None else f"the smallest takes {format_n_bytes(least)}"
        return Choice(job, size, None, None, None, f"nothing fits: {needs}")
    best = max(fitting, key=lambda row: (merit(row) or 0.0, row.decode_deep or 0.0))
    return Choice(job, size, best.board, best.model, best.label, why.format(merit(best)))
