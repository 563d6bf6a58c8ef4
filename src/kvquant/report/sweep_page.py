"""A sweep as one self-contained page: what to choose, then what that rests on."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from kvquant.report import sweep_figures as figures
from kvquant.report.html import bullets, figure, folded, key, pairs, tiles, whole_page
from kvquant.report.sweep_tables import (
    answered_text,
    choice_table,
    decision_table,
    depth_line,
    parts,
    setting_text,
    tokens_text,
)
from kvquant.results.sweep import CellRecord, DecisionRow, Ending, SweepResult, leading_rows
from kvquant.tables import NONE, Table, html_table, n_bytes, number, percent, seconds
from kvquant.tables import escape_html as escape

Draw = Callable[[SweepResult, bool, str], str | None]

QUIET = 0.9
"""Share of their processor time that a cell's threads must have had to count as undisturbed."""

NOTES = (
    "Rates are tokens per second, medians over rounds. Every second round runs in reverse, and the policies "
    "of one setting run one after another, so drift slows all alike.",
    "Threads, cores and flash attention of a row are those whose decode at depth is fastest; of those "
    "within 3 %, "
    "the ones with the fewest threads.",
    "A context is stable when facts at its start, in its middle and at its end are all recalled, several "
    "times in "
    "a row. Predicted is what kvquant memory computes for the free memory.",
    "Host memory is what llama.cpp logs: weights, KV cache, compute and output buffers. Peak RSS counts "
    "the pages "
    "of the model's file that were touched.",
    "A star marks rows on the Pareto front of decode at depth, host memory and quality, a question mark "
    "rows of unknown quality.",
)


def sweep_page(result: SweepResult) -> str:
    """Return the page as HTML text."""
    names = [board.name for board in result.boards]
    title = f"Sweep: {', '.join(names) or 'nothing yet'}"
    return whole_page(
        title,
        (
            f"<h1>{escape(title)}</h1>",
            f'<p class="subject">{escape(_subject(result))}</p>',
            _headline(result),
            _tiles(result),
            _choices(result),
            _decision(result),
            _figure(
                result,
                figures.memory_svg,
                "Memory against speed",
                "Decode at depth against host memory, one point per model and policy.",
                "Upper left is better. Colours are models, marks are policies.",
            ),
            _figure(
                result,
                figures.settings_svg,
                "Every setting",
                "Decode under every number of threads, flash attention and context; the table of cells has "
                "the "
                "numbers.",
                "One mark per policy, with a line from its slowest round to its fastest.",
            ),
            _figure(
                result,
                figures.depth_svg,
                "Speed by depth",
                "Prefill and decode against the tokens in the cache, one line per model and policy.",
                "Each under its best setting.",
            ),
            _figure(
                result,
                figures.context_svg,
                "Context",
                "; ".join(map(figures.described, result.rows)),
                "Palest: loads; darker: answers once; full: answers every time.",
            ),
            _parts(result),
            _cells(result),
            f"<h2>How to read the numbers</h2>\n{bullets(NOTES)}",
            _provenance(result),
        ),
    )


def _subject(result: SweepResult) -> str:
    done = sum(cell.ending is Ending.DONE for cell in result.cells)
    loads = [cell.before.load for cell in result.cells if cell.before and cell.before.load is not None]
    text = f"{done} of {len(result.cells)} cells measured, {len(result.probes)} context probes"
    return f"{text}; load average before a cell {min(loads):.1f} to {max(loads):.1f}" if loads else text


def disturbance(result: SweepResult) -> str:
    """Say, in one line, whether the cells had the machine for themselves; "" where that is not known."""
    shares = [
        point.cpu_share for cell in result.cells for point in cell.points if point.cpu_share is not None
    ]
    if not shares:
        return ""
    quiet = sum(share >= QUIET for share in shares)
    middle = percent(median(shares))
    if quiet == len(shares):
        return f"The cells had the machine to themselves: {middle} of the processor time they could use."
    return (
        f"Other programs ran: the servers' threads had {middle} of the processor time they could use "
        f"(median), and "
        f"{quiet} of {len(shares)} timings were undisturbed. Rates are lower than on an idle machine, "
        "and differences between settings are partly chance."
    )


def _headline(result: SweepResult) -> str:
    lines = [_answer(row) for row in leading_rows(result.rows)]
    warning = disturbance(result)
    if not lines:
        return ""
    first, *others = [*lines, *([warning] if warning else [])]
    return f'<section class="verdict" aria-label="Summary"><p>{escape(first)}</p>{bullets(others)}</section>'


def _answer(row: DecisionRow) -> str:
    context = "context not probed"
    if row.loaded_ctx is not None:
        context = f"stable context {answered_text(row, row.stable_ctx)}, loads {tokens_text(row.loaded_ctx)}"
    return (
        f"{row.model}: {row.label}, threads {setting_text(row)}: {number(row.decode_deep)} tokens/s at depth "
        f"{row.depth}, "
        f"{context}, {n_bytes(row.host_bytes)} of memory"
    )


def _tiles(result: SweepResult) -> str:
    entries = [
        (row.model, number(row.decode_deep), f"tokens/s, {row.label}, {n_bytes(row.host_bytes)}")
        for row in leading_rows(result.rows)
    ]
    return tiles(entries) if entries else ""


def _choices(result: SweepResult) -> str:
    if not result.choices:
        return ""
    table = html_table(choice_table(result.choices), "Which model and policy for which job in this memory")
    return f"<h2>What to choose</h2>\n{table}"


def _decision(result: SweepResult) -> str:
    marked = [i for i, row in enumerate(result.rows) if row.pareto]
    table = html_table(decision_table(result), depth_line(result), marked)
    return f"<h2>The decision table</h2>\n{table}"


def _parts(result: SweepResult) -> str:
    tables = [folded(name, html_table(found, name)) for name, found in parts(result).items()]
    return "<h2>In full</h2>\n" + "\n".join(tables) if tables else ""


def _cells(result: SweepResult) -> str:
    if not result.cells:
        return ""
    rows = tuple(_cell_row(cell) for cell in result.cells)
    head = ("cell", "ended", "depth", "prefill", "decode", "first token", "share of CPU", "load", "seconds")
    table = html_table(Table(head, rows, words=(1,)), "Every cell")
    problems = [
        f"{cell.setting.model} {cell.setting.variant}, fa {cell.setting.flash_attn}: {cell.ending}: "
        f"{cell.detail}"
        for cell in result.cells
        if cell.ending is not Ending.DONE
    ]
    probes = [
        f"{probe.setting.model} {probe.setting.variant}, context {tried.n_ctx:,}: {tried.part}, "
        f"{'right' if tried.ok and tried.part == 'answer' else 'loads' if tried.ok else tried.detail}"
        for probe in result.probes
        for tried in probe.attempts
    ]
    return "\n".join(
        (
            "<h2>The cells</h2>",
            folded("Every cell", table),
            folded("What was not measured, and why", bullets(dict.fromkeys(problems))) if problems else "",
            folded("What the probes tried", bullets(probes)) if probes else "",
        )
    )


def _cell_row(cell: CellRecord) -> tuple[str, ...]:
    setting, point = cell.setting, max(cell.points, key=lambda found: found.depth, default=None)
    threads = "auto" if setting.n_threads is None else setting.n_threads
    name = f"{setting.model} {setting.variant or ''} t{threads} fa {setting.flash_attn} {setting.n_ctx}"
    name += f" r{cell.round}"
    load = NONE if cell.before is None or cell.before.load is None else f"{cell.before.load:.1f}"
    took = f"{cell.wall_seconds:.1f}"
    if point is None:
        return name, str(cell.ending), *(NONE,) * 5, load, took
    return (
        name,
        str(cell.ending),
        str(point.depth),
        number(point.prefill),
        number(point.decode),
        seconds(point.ttft_seconds),
        percent(point.cpu_share),
        load,
        took,
    )


def _provenance(result: SweepResult) -> str:
    entries = [(name, f"<code>{escape(_shown(value))}</code>") for name, value in result.provenance.items()]
    for board in result.boards:
        entries.append((board.name, escape(f"llama.cpp {board.llama_tag or '?'}, cores {dict(board.cores)}")))
        entries += [
            (model.name, f"{escape(model.title)}, sha256 <code>{escape(model.sha256[:16])}</code>")
            for model in board.models
        ]
        entries += [("warning", escape(line)) for line in board.warnings]
    return f"<h2>Where this comes from</h2>\n{folded('Command, build, models', pairs(entries))}"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _figure(result: SweepResult, draw: Draw, heading: str, description: str, caption: str) -> str:
    name = draw.__name__.removesuffix("_svg")
    wide, narrow = draw(result, False, f"{name}-wide"), draw(result, True, f"{name}-narrow")
    if wide is None or narrow is None:
        return ""
    drawn = key(figures.key_entries(result, wide))
    return figure(heading, wide, narrow, description, drawn + escape(caption))
