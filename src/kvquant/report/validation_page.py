"""A validation as one self-contained page: no scripts, no network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version

from kvquant.report import validation_figures as figures
from kvquant.report import validation_tables as tables
from kvquant.report import validation_words as words
from kvquant.report.html import bullets, cards, escape, figure, folded, key, pairs, table, whole_page
from kvquant.report.validation_document import Document, compared, each
from kvquant.report.validation_marks import inks
from kvquant.report.validation_quality import quality_svg

Draw = Callable[[Document, bool, str], str | None]

_TONES = {"safe": "good", "costs": "caution", "broken": "bad", "failed": "bad"}
"""Verdicts that are news, and how they are coloured; the word itself says what it is."""


def validation_page(document: Document, logs: Mapping[str, str]) -> str:
    """Return the page as HTML text. logs: excerpts by the name that a failure gives (`read_excerpts`)."""
    return whole_page(
        words.title(document),
        (
            f"<h1>{escape(words.title(document))}</h1>",
            f'<p class="subject">{escape(words.subject(document))}</p>',
            _summary(document),
            _verdicts(document),
            _reasons(document),
            _quality(document),
            _answers(document),
            _divergence(document),
            _speed(document),
            _memory(document),
            _failures(document, logs),
            f"<h2>How to read the numbers</h2>\n{bullets(words.note_lines(document))}",
            _provenance(document),
        ),
    )


def _summary(document: Document) -> str:
    first, *others = words.headline(document)
    return f'<section class="verdict" aria-label="Summary"><p>{escape(first)}</p>{bullets(others)}</section>'


def _verdicts(document: Document) -> str:
    tones = [_TONES.get(policy["verdict"]) for policy in document["policies"]]
    rows = tables.verdict_rows(document)
    head, caption = tables.verdict_head(document), "The verdict on every policy"
    return f"<h2>Verdicts</h2>\n{cards(head, rows, caption, tones)}"


def _reasons(document: Document) -> str:
    given = [policy for policy in document["policies"] if policy["reasons"]]
    entries = [(policy["label"], bullets(policy["reasons"])) for policy in given]
    return f"<h2>Why</h2>\n{pairs(entries)}" if entries else ""


def _quality(document: Document) -> str:
    return _figure(
        document,
        quality_svg,
        "Memory against quality",
        "KL divergence and right answers against the size of the KV cache, a point for each policy. The "
        "tables have the numbers.",
        "Lower left is better for the divergence, upper left for the answers. Vertical lines are 95 % "
        "intervals. The dashed line is the baseline against itself, the stepped one the Pareto front.",
    )


def _answers(document: Document) -> str:
    told = [policy for policy in compared(document) if policy["tasks"]]
    parts = [
        folded(
            policy["label"],
            table(tables.CATEGORY_HEAD, rows, f"{policy['label']} against the baseline", (9,)),
        )
        for policy in told
        if (rows := tables.category_rows(policy))
    ]
    repeated = tables.repeat_rows(document)
    if repeated:
        caption = f"{document['baseline']} against itself"
        parts.append(
            folded("The baseline, asked twice", table(tables.CATEGORY_HEAD, repeated, caption, (9,)))
        )
    return _figure(
        document,
        figures.categories_svg,
        "Answers by category",
        "Change of the share of right answers in every category, a point with its interval for each policy. "
        "The tables below have the numbers.",
        "Left of the line answers were lost. An interval that crosses the line shows no change, not that "
        "there is none.",
        "\n".join([bullets(words.sure_lines(document)), *parts]),
    )


def _divergence(document: Document) -> str:
    rows = tables.divergence_rows(document)
    by_policy = _figure(
        document,
        figures.divergence_svg,
        "KL divergence from the baseline",
        "Mean KL divergence of every policy with its interval. The table below has the numbers.",
        "Filled: token by token, as text is made. Hollow: the prompt at once. The grey bar is the floor, the "
        "baseline against itself: what lies there cannot be told from it.",
        table(tables.DIVERGENCE_HEAD, rows, "KL divergence per token, nats", (1,)) if rows else "",
        with_key=False,
    )
    by_position = _figure(
        document,
        figures.positions_svg,
        "KL divergence by position",
        "Mean KL divergence against the position of the token, a line for each policy.",
        "A line that rises says that errors pile up as the cache fills.",
    )
    return f"{by_policy}\n{by_position}"


def _speed(document: Document) -> str:
    rows, chat = tables.speed_rows(document), tables.chat_rows(document)
    details = (
        folded("All speeds", table(tables.SPEED_HEAD, rows, "Speed by llama-bench", (1,))) if rows else ""
    )
    talked = table(tables.CHAT_HEAD, chat, "A fixed conversation with the server") if chat else ""
    return _figure(
        document,
        figures.speed_svg,
        "Speed by depth",
        "Tokens per second of prefill and decode against the tokens in the cache, a line for each policy.",
        "Medians over rounds in which the policies take turns.",
        f"{details}\n{talked}",
    )


def _memory(document: Document) -> str:
    rows = tables.memory_rows(document)
    below = table(tables.MEMORY_HEAD, rows, "Memory, by each source") if rows else ""
    return _figure(
        document,
        figures.layers_svg,
        "KV bytes by layer",
        "Bytes of K and of V in every layer as shades, a strip for each policy. The table has the sums.",
        "Upper strip K, lower strip V; the fainter, the fewer bytes beside the baseline’s.",
        f"{below}\n{bullets(words.memory_findings(document))}",
        with_key=False,
    )


def _failures(document: Document, logs: Mapping[str, str]) -> str:
    parts = []
    for policy, row in each(document, "failures"):
        log = "" if row["log"] is None else f" <code>{escape(row['log'])}</code>"
        of_policy = f"<strong>{escape(policy['label'])}</strong>, {escape(row['part'])}"
        what = f"<p>{of_policy}: {escape(row['what'])}{log}</p>"
        excerpt = logs.get(row["log"] or "")
        parts.append(what + (f'<pre tabindex="0">{escape(excerpt)}</pre>' if excerpt else ""))
    return f"<h2>What failed</h2>\n{''.join(parts)}" if parts else ""


def _provenance(document: Document) -> str:
    entries = [(name, f"<code>{escape(value)}</code>") for name, value in words.provenance_pairs(document)]
    entries.append(("written by", f"kvquant {escape(version('kvquant'))}"))
    return f"<h2>Where this comes from</h2>\n{folded('Model, build, machine', pairs(entries))}"


def _figure(
    document: Document,
    draw: Draw,
    heading: str,
    description: str,
    caption: str,
    below: str = "",
    with_key: bool = True,
) -> str:
    """A section with its figure, what belongs below it, and nothing where there is neither."""
    name = draw.__name__.removesuffix("_svg")
    wide, narrow = draw(document, False, f"{name}-wide"), draw(document, True, f"{name}-narrow")
    if wide is None or narrow is None:
        return f"<h2>{escape(heading)}</h2>\n{below}" if below.strip() else ""
    drawn = _key(document, wide) if with_key else ""
    return f"{figure(heading, wide, narrow, description, drawn + escape(caption))}\n{below}"


def _key(document: Document, svg: str) -> str:
    """The policies whose colour is in the figure."""
    all_inks = inks(document).items()
    return key((label, ink.role, ink.dash) for label, ink in all_inks if f"var(--{ink.role})" in svg)
