"""The tables of a validation, as cells of text, the same for a page and for Markdown."""

from __future__ import annotations

from kvquant.report.numbers import n_bytes, number, percent, points, seconds, times, with_interval
from kvquant.report.tables import UNKNOWN, small
from kvquant.report.validation_document import Document, divergence_of, each, ratio_of, total_of

NONE = "–"
"""Stands where there is nothing to say, as for the change of the baseline against itself."""

CATEGORY_HEAD = (
    "category",
    "n",
    "baseline",
    "policy",
    "lost",
    "gained",
    "change, points",
    "p",
    "finds",
    "verdict",
)

DIVERGENCE_HEAD = (
    "policy",
    "path",
    "tokens",
    "mean KL",
    "floor",
    "median",
    "99 %",
    "99.9 %",
    "largest",
    "same top token",
    "Δp rms",
    "perplexity",
    "of baseline",
)

SPEED_HEAD = ("policy", "phase", "depth", "tokens/s", "of baseline", "rounds")

MEMORY_HEAD = ("policy", "logged", "computed", "by slot", "of baseline", "peak of the server")

CHAT_HEAD = ("policy", "first token", "tokens/s")


def verdict_head(document: Document) -> list[str]:
    """The columns of the first table; speed is that at the largest depth."""
    depth = speed_depth(document)
    at = "" if depth is None else f" at {depth:,}"
    head = ["policy", "verdict", "KV cache", "of baseline", "right answers, points", "KL, nats", "KL floor"]
    return [*head, f"decode{at}", f"prefill{at}"]


def verdict_rows(document: Document) -> list[list[str]]:
    """The rows of the first table, the baseline first as it stands in the document."""
    depth = speed_depth(document)
    return [_verdict_row(policy, depth) for policy in document["policies"]]


def speed_depth(document: Document) -> int | None:
    """The largest depth at which speed was measured, which the first table shows."""
    depths = [row["depth"] for policy in document["policies"] for row in policy["speed"]]
    return max(depths, default=None)


def category_rows(policy: Document) -> list[list[str]]:
    """The categories of one policy against the baseline."""
    return [_category_row(row) for row in policy["tasks"]]


def repeat_rows(document: Document) -> list[list[str]]:
    """The categories of the baseline against itself."""
    return [_category_row(row) for policy in document["policies"] for row in policy["repeat"]]


def divergence_rows(document: Document) -> list[list[str]]:
    """KL divergence of every policy and path."""
    return [_divergence_row(policy["label"], row) for policy, row in each(document, "divergence")]


def speed_rows(document: Document) -> list[list[str]]:
    """Speed of every policy, phase and depth."""
    return [
        [
            policy["label"],
            row["phase"],
            str(row["depth"]),
            number(row["tokens_per_second"]),
            with_interval(times(row["ratio"]), row["interval"], times),
            str(row["n_rounds"]),
        ]
        for policy, row in each(document, "speed")
    ]


def memory_rows(document: Document) -> list[list[str]]:
    """What every policy's cache takes, by each of the sources."""
    names = ("kv_bytes_logged", "kv_bytes_computed", "kv_bytes_slot")
    return [
        [
            policy["label"],
            *(n_bytes(policy["memory"][name]) for name in names),
            times(policy["memory"]["ratio"]),
            n_bytes(policy["memory"]["peak_rss_bytes"]),
        ]
        for policy in document["policies"]
        if policy["memory"] is not None
    ]


def chat_rows(document: Document) -> list[list[str]]:
    """The fixed conversation under every policy."""
    return [
        [
            policy["label"],
            seconds(policy["chat"]["ttft_seconds"]),
            number(policy["chat"]["tokens_per_second"]),
        ]
        for policy in document["policies"]
        if policy["chat"] is not None
    ]


def _verdict_row(policy: Document, depth: int | None) -> list[str]:
    total, divergence, memory = total_of(policy), divergence_of(policy), policy["memory"]
    known = None if memory is None else memory["kv_bytes_logged"]
    if known is None and memory is not None:
        known = memory["kv_bytes_computed"]
    label, rules = policy["label"], policy["policy"]
    return [
        label if label in (rules, rules.removeprefix("*:")) else f"{label} ({rules})",
        policy["verdict"],
        n_bytes(known),
        times(ratio_of(policy)),
        UNKNOWN if total is None else _change(total) if policy["verdict"] != "baseline" else NONE,
        NONE if policy["verdict"] == "baseline" else _kl(divergence),
        NONE if policy["verdict"] == "baseline" else _floor(divergence),
        _speed_at(policy, "decode", depth),
        _speed_at(policy, "prefill", depth),
    ]


def _kl(row: Document | None) -> str:
    return UNKNOWN if row is None else with_interval(small(row["mean"]), row["interval"], small)


def _floor(row: Document | None) -> str:
    return UNKNOWN if row is None or row["floor"] is None else small(row["floor"]["mean"])


def _change(row: Document) -> str:
    return with_interval(points(row["change"]["value"]), row["change"]["interval"], points)


def _speed_at(policy: Document, phase: str, depth: int | None) -> str:
    rows = [row for row in policy["speed"] if (row["phase"], row["depth"]) == (phase, depth)]
    return times(rows[0]["ratio"]) if rows else UNKNOWN


def _category_row(row: Document) -> list[str]:
    return [
        row["category"],
        str(row["n"]),
        percent(row["baseline"]["rate"]),
        percent(row["other"]["rate"]),
        str(row["n_lost"]),
        str(row["n_gained"]),
        _change(row),
        f"{row['p_holm']:.2g}",
        NONE if row["minimum_detectable_effect"] is None else percent(row["minimum_detectable_effect"]),
        row["verdict"],
    ]


def _divergence_row(label: str, row: Document) -> list[str]:
    floor = row["floor"]
    return [
        label,
        row["path"],
        str(row["n_tokens"]),
        _kl(row),
        UNKNOWN if floor is None else with_interval(small(floor["mean"]), floor["interval"], small),
        *(small(row[name]) for name in ("median", "p99", "p999", "max")),
        percent(row["top1"]["value"]),
        percent(row["delta_p_rms"]),
        number(row["ppl_policy"]),
        number(row["ppl_baseline"]),
    ]
