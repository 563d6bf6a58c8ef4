"""A validation as one self-contained page: no scripts, no network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kvquant.report import validation_figures as figures
from kvquant.report import validation_tables as tables
from kvquant.report import validation_text as words
from kvquant.report.html import bullets, figure, folded, key, pairs, whole_page
from kvquant.results.comparison import TaskRow, Verdict
from kvquant.results.validation import ValidationResult
from kvquant.shipped import VERSION
from kvquant.tables import escape_html as escape
from kvquant.tables import html_cards, html_table

Draw = Callable[[ValidationResult, bool, str], str | None]

_TONES = {Verdict.SAFE: "good", Verdict.COSTS: "caution", Verdict.BROKEN: "bad", Verdict.FAILED: "bad"}
"""Verdicts that are news, and how they are coloured; the word itself says what it is."""


def validation_page(result: ValidationResult, logs: Mapping[str, str]) -> str:
    """Return the page as HTML text. logs: excerpts by the name that a failure gives (`read_excerpts`)."""
    return whole_page(
        words.title(result),
        (
            f"<h1>{escape(words.title(result))}</h1>",
            f'<p class="subject">{escape(words.subject(result))}</p>',
            _summary(result),
            _verdicts(result),
            _reasons(result),
            _quality(result),
            _answers(result),
            _divergence(result),
            _speed(result),
            _memory(result),
            _failures(result, logs),
            f"<h2>How to read the numbers</h2>\n{bullets(words.note_lines(result))}",
            _provenance(result),
        ),
    )


def _summary(result: ValidationResult) -> str:
    first, *others = words.headline(result)
    return f'<section class="verdict" aria-label="Summary"><p>{escape(first)}</p>{bullets(others)}</section>'


def _verdicts(result: ValidationResult) -> str:
    tones = [_TONES.get(policy.verdict) for policy in result.policies]
    table = html_cards(tables.verdict_table(result), "The verdict on every policy", tones)
    return f"<h2>Verdicts</h2>\n{table}"


def _reasons(result: ValidationResult) -> str:
    given = [policy for policy in result.policies if policy.reasons]
    entries = [(policy.label, bullets(policy.reasons)) for policy in given]
    return f"<h2>Why</h2>\n{pairs(entries)}" if entries else ""


def _quality(result: ValidationResult) -> str:
    return _figure(
        result,
        figures.quality_svg,
        "Memory against quality",
        "KL divergence and right answers against the size of the KV cache, one point per policy. The "
        "tables have the numbers.",
        "Lower left is better for the divergence, upper left for the answers. Vertical lines are 95 % "
        "intervals. The dashed line is the baseline against itself, the stepped one the Pareto front.",
    )


def _answers(result: ValidationResult) -> str:
    parts = [
        _paired(policy.label, policy.tasks, f"{policy.label} against the baseline")
        for policy in result.compared
        if policy.tasks
    ]
    repeated = tables.repeat_rows(result)
    if repeated:
        parts.append(
            _paired("The baseline, asked twice", repeated, f"{result.baseline} against itself", "again")
        )
    return _figure(
        result,
        figures.categories_svg,
        "Answers by category",
        "Change of the share of right answers in every category, a point with its interval for each policy. "
        "The tables below have the numbers.",
        "Left of the line answers were lost. An interval that crosses the line shows no change, but does "
        "not rule one out.",
        "\n".join([bullets(words.sure_lines(result)), *parts]),
    )


def _paired(name: str, rows: Sequence[TaskRow], caption: str, other: str = "policy") -> str:
    """A table of categories on demand, and why rows of it cannot tell."""
    table = html_table(tables.task_table(rows, other), caption)
    return folded(name, f"{table}\n{bullets(tables.reason_lines(rows))}")


def _divergence(result: ValidationResult) -> str:
    found = tables.divergence_table(result)
    by_policy = _figure(
        result,
        figures.divergence_svg,
        "KL divergence from the baseline",
        "Mean KL divergence of every policy with its interval. The table below has the numbers.",
        "Filled: token by token, like an answer. Hollow: in batches, like a prompt. The grey bar is the "
        "floor, the baseline against itself: values there cannot be told from it.",
        html_table(found, "KL divergence per token, nats") if found.rows else "",
        with_key=False,
    )
    by_position = _figure(
        result,
        figures.positions_svg,
        "KL divergence by position",
        "Mean KL divergence against the position of the token, one line per policy.",
        "A rising line means that errors build up as the cache fills.",
    )
    return f"{by_policy}\n{by_position}"


def _speed(result: ValidationResult) -> str:
    speeds, chat = tables.speed_table(result), tables.chat_table(result)
    details = folded("All speeds", html_table(speeds, "Speed by llama-bench")) if speeds.rows else ""
    talked = html_table(chat, "A fixed conversation with the server") if chat.rows else ""
    return _figure(
        result,
        figures.speed_svg,
        "Speed by depth",
        "Tokens per second of prefill and decode against the tokens in the cache, one line per policy.",
        "Medians over rounds; the policies take turns.",
        f"{details}\n{talked}",
    )


def _memory(result: ValidationResult) -> str:
    sources = tables.memory_table(result)
    below = html_table(sources, "Memory, by each source") if sources.rows else ""
    return _figure(
        result,
        figures.layers_svg,
        "KV bytes by layer",
        "Bytes of K and V in every layer as shades, one strip per policy. The table has the sums.",
        "Upper strip K, lower strip V; paler means fewer bytes than the baseline.",
        f"{below}\n{bullets(words.memory_findings(result))}",
        with_key=False,
    )


def _failures(result: ValidationResult, logs: Mapping[str, str]) -> str:
    parts = []
    for policy, row in words.failures_of(result):
        log = "" if row.log is None else f" <code>{escape(row.log)}</code>"
        of_policy = f"<strong>{escape(policy.label)}</strong>, {escape(row.part)}"
        what = f"<p>{of_policy}: {escape(row.what)}{log}</p>"
        excerpt = logs.get(row.log or "")
        parts.append(what + (f'<pre tabindex="0">{escape(excerpt)}</pre>' if excerpt else ""))
    return f"<h2>What failed</h2>\n{''.join(parts)}" if parts else ""


def _provenance(result: ValidationResult) -> str:
    entries = [(name, f"<code>{escape(value)}</code>") for name, value in words.provenance_pairs(result)]
    entries.append(("written by", f"kvquant {escape(VERSION)}"))
    return f"<h2>Where this comes from</h2>\n{folded('Model, build, machine', pairs(entries))}"


def _figure(
    result: ValidationResult,
    draw: Draw,
    heading: str,
    description: str,
    caption: str,
    below: str = "",
    with_key: bool = True,
) -> str:
    """A section with its figure, what belongs below it, and nothing where there is neither."""
    name = draw.__name__.removesuffix("_svg")
    wide, narrow = draw(result, False, f"{name}-wide"), draw(result, True, f"{name}-narrow")
    if wide is None or narrow is None:
        return f"<h2>{escape(heading)}</h2>\n{below}" if below.strip() else ""
    drawn = _key(result, wide) if with_key else ""
    return f"{figure(heading, wide, narrow, description, drawn + escape(caption))}\n{below}"


def _key(result: ValidationResult, svg: str) -> str:
    """The policies whose colour is in the figure."""
    all_inks = figures.inks(result).items()
    return key((label, ink.role, ink.dash) for label, ink in all_inks if f"var(--{ink.role})" in svg)
