"""The decision table of a sweep in words: for a terminal, and in more columns for a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvquant.results.sweep import Choice, DecisionRow, SweepResult
from kvquant.tables import NONE, UNKNOWN, Table, n_bytes, number, percent, seconds, small, text, times
from kvquant.units import format_n_bytes

Column = tuple[str, Callable[[DecisionRow], str], bool]
"""Head, cell, whether it is words."""


def setting_text(row: DecisionRow) -> str:
    """Threads, cores and flash attention of a row: "2 on 4-7, fa on"."""
    if row.flash_attn is None:
        return UNKNOWN if row.n_threads is None else str(row.n_threads)
    if row.flash_attn == "?":
        return NONE
    threads = "auto" if row.n_threads is None else str(row.n_threads)
    cores = "" if row.cpus in (None, "all") else f" on {row.cpus}"
    return f"{threads}{cores}, fa {row.flash_attn}"


def several_boards(result: SweepResult) -> bool:
    """Whether rows need the name of their board."""
    return len({row.board for row in result.rows if row.source is None}) > 1


def tokens_text(value: int | None) -> str:
    """A context."""
    return UNKNOWN if value is None else f"{value:,}"


def answered_text(row: DecisionRow, value: int | None) -> str:
    """A context in which a model answers; "none" where it was asked and never did."""
    return "none" if value is None and row.loaded_ctx is not None else tokens_text(value)


def problems_text(row: DecisionRow) -> str:
    """What became of the cells that were not measured."""
    return ", ".join(f"{count} {name}" for name, count in row.problems.items())


def _pareto(row: DecisionRow) -> str:
    return {None: UNKNOWN, True: "*", False: ""}[row.pareto]


def _row_name(row: DecisionRow) -> str:
    return row.model if row.source is None else f"{row.model} [{row.source}]"


_NAMES: tuple[Column, ...] = (
    ("model", _row_name, True),
    ("policy", lambda row: row.label, True),
)
_BOARD: Column = ("board", lambda row: row.board, True)
_PARETO: Column = ("best", _pareto, True)
_SPEED: tuple[Column, ...] = (
    ("threads", setting_text, True),
    ("decode 0", lambda row: number(row.decode_0), False),
    ("decode deep", lambda row: number(row.decode_deep), False),
    ("vs first", lambda row: times(row.decode_ratio), False),
    ("prefill 0", lambda row: number(row.prefill_0), False),
    ("prefill deep", lambda row: number(row.prefill_deep), False),
)
_FIRST_TOKEN: Column = ("first token", lambda row: seconds(row.ttft_seconds), False)
_SHARE: Column = ("share of CPU", lambda row: percent(row.cpu_share), False)
_CONTEXT: tuple[Column, ...] = (
    ("loads", lambda row: tokens_text(row.loaded_ctx), False),
    ("answers", lambda row: answered_text(row, row.answered_ctx), False),
    ("stable", lambda row: answered_text(row, row.stable_ctx), False),
    ("predicted", lambda row: tokens_text(row.predicted_ctx), False),
)
_MEMORY: tuple[Column, ...] = (
    ("file", lambda row: n_bytes(row.file_bytes), False),
    ("bits/weight", lambda row: number(row.bits_per_weight), False),
    ("at context", lambda row: tokens_text(row.n_ctx), False),
    ("model", lambda row: n_bytes(row.model_bytes), False),
    ("KV", lambda row: n_bytes(row.kv_bytes), False),
    ("compute", lambda row: n_bytes(row.compute_bytes), False),
    ("host memory", lambda row: n_bytes(row.host_bytes), False),
    ("peak RSS", lambda row: n_bytes(row.peak_rss_bytes), False),
)
_QUALITY: tuple[Column, ...] = (
    ("right", lambda row: percent(row.quality.rate), False),
    ("tool calls", lambda row: percent(row.quality.tool_rate), False),
    ("KL", lambda row: small(row.quality.kl), False),
    ("s/answer", lambda row: number(row.quality.wall_seconds), False),
    ("composite", lambda row: number(row.quality.composite), False),
)
_STATE: Column = ("not measured", problems_text, True)


def table(rows: Sequence[DecisionRow], columns: Sequence[Column]) -> Table:
    """Return a table of some columns; those in which nothing is known are left out, names apart."""
    cells = [tuple(cell(row) for _, cell, _ in columns) for row in rows]
    kept = [
        i
        for i in range(len(columns))
        if columns[i] in _NAMES or any(row[i] not in ("", UNKNOWN, NONE) for row in cells)
    ]
    return Table(
        tuple(columns[i][0] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in cells),
        words=tuple(new for new, i in enumerate(kept) if columns[i][2]),
    )


def decision_table(result: SweepResult) -> Table:
    """The table for a terminal: what decides."""
    board = (_BOARD,) if several_boards(result) else ()
    columns = (*_NAMES, *board, *_SPEED[:4], _FIRST_TOKEN, _SHARE, _CONTEXT[2], _MEMORY[4], _MEMORY[6])
    return table(result.rows, (*columns, *_QUALITY[:3], _QUALITY[4], _PARETO, _STATE))


def parts(result: SweepResult) -> dict[str, Table]:
    """The tables of a page, by what they are about."""
    names = (*_NAMES, *((_BOARD,) if several_boards(result) else ()))
    found = {
        "Speed": table(result.rows, (*names, *_SPEED, _FIRST_TOKEN, _SHARE, _STATE)),
        "Context": table(result.rows, (*names, *_CONTEXT)),
        "Memory": table(result.rows, (*names, *_MEMORY)),
        "Quality": table(result.rows, (*names, *_QUALITY, _PARETO)),
    }
    return {name: found[name] for name in found if len(found[name].head) > len(names)}


def choice_table(choices: Sequence[Choice]) -> Table:
    """Which model and policy for which job within which memory."""
    return Table(
        ("job", "memory", "model", "policy", "why"),
        tuple(
            (
                choice.job,
                NONE if choice.ram_bytes is None else format_n_bytes(choice.ram_bytes),
                choice.model or NONE,
                choice.policy or NONE,
                choice.why,
            )
            for choice in choices
        ),
        words=(2, 3, 4),
    )


def depth_line(result: SweepResult) -> str:
    """What "deep" means."""
    depths = sorted({row.depth for row in result.rows if row.depth is not None})
    if not depths:
        return "nothing was measured yet"
    return f"deep: with {' or '.join(map(str, depths))} tokens in the cache; tokens per second, medians"


def sweep_text(result: SweepResult, width: int | None = None) -> str:
    """Return what a terminal shows."""
    if not result.rows:
        return "nothing was measured yet"
    blocks = [text(decision_table(result), width), depth_line(result)]
    if result.choices:
        blocks += ["", text(choice_table(result.choices), width)]
    return "\n".join(blocks)
