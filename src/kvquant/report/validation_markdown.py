"""A validation as Markdown: the same tables and sentences as the page, without its figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from kvquant.report import validation_tables as tables
from kvquant.report import validation_words as words
from kvquant.report.tables import printable
from kvquant.report.validation_document import Document, compared, each

_SPECIAL = re.compile(r"([\\`*{}\[\]<>|#~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
"""Inside a word an underscore is only an underscore."""

_LINE_START = re.compile(r"^(\d*)([-+=.)])(?=[-+=\s]|$)")
"""What would make a list, a rule or a heading of a line."""


def validation_markdown(document: Document, logs: Mapping[str, str]) -> str:
    """Return the text. logs: excerpts by the name that a failure gives (`read_excerpts`)."""
    return (
        "\n\n".join(
            part
            for part in (
                f"# {escape(words.title(document))}",
                escape(words.subject(document)),
                _bullets(words.headline(document)),
                _table(tables.verdict_head(document), tables.verdict_rows(document)),
                *_reasons(document),
                *_answers(document),
                *_section(
                    "KL divergence per token, nats", tables.DIVERGENCE_HEAD, tables.divergence_rows(document)
                ),
                *_section("Speed", tables.SPEED_HEAD, tables.speed_rows(document)),
                *_section("A fixed conversation", tables.CHAT_HEAD, tables.chat_rows(document)),
                *_section("Memory", tables.MEMORY_HEAD, tables.memory_rows(document)),
                _bullets(words.memory_findings(document)),
                *_failures(document, logs),
                "## How to read the numbers",
                _bullets(words.note_lines(document)),
                "## Where this comes from",
                _bullets(f"{name}: {value}" for name, value in words.provenance_pairs(document)),
            )
            if part
        )
        + "\n"
    )


def escape(text: str) -> str:
    """Return ``text`` on one line, as itself whatever is in it."""
    line = _SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))
    return _LINE_START.sub(r"\1\\\2", line)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(escape(cell) for cell in cells)} |"

    return "\n".join([line(head), "|---" * len(head) + "|", *map(line, rows)])


def _section(heading: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"## {heading}", _table(head, rows)] if rows else []


def _reasons(document: Document) -> list[str]:
    lines = [f"{policy['label']}: {line}" for policy in document["policies"] for line in policy["reasons"]]
    return ["## Why", _bullets(lines)] if lines else []


def _answers(document: Document) -> list[str]:
    parts = ["## Answers by category", _bullets(words.sure_lines(document))]
    for policy in compared(document):
        if policy["tasks"]:
            parts += [
                f"### {escape(policy['label'])}",
                _table(tables.CATEGORY_HEAD, tables.category_rows(policy)),
            ]
    repeated = tables.repeat_rows(document)
    if repeated:
        parts += ["### The baseline, asked twice", _table(tables.CATEGORY_HEAD, repeated)]
    return parts


def _failures(document: Document, logs: Mapping[str, str]) -> list[str]:
    parts = []
    for policy, row in each(document, "failures"):
        log = "" if row["log"] is None else f" ({row['log']})"
        parts.append(escape(f"{policy['label']}, {row['part']}: {row['what']}{log}"))
        excerpt = printable(logs.get(row["log"] or "", ""))
        if excerpt:
            # Longer than any run of backticks in it, so that nothing inside can end the block.
            fence = "`" * (2 + max((len(run) for run in re.findall("`+", excerpt)), default=1))
            parts.append(f"{fence}text\n{excerpt}\n{fence}")
    return ["## What failed", *parts] if parts else []
