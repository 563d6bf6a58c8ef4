"""The result document of a validation, as `kvquant validate` writes it (docs/evaluation.md), and its parts.

Every number that is not known is None in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]
"""The result document or a part of it: a JSON object."""

TOTAL = "total"
"""The category that sums up the others."""


def compared(document: Document) -> list[Document]:
    """All policies but the baseline."""
    return [policy for policy in document["policies"] if policy["label"] != document["baseline"]]


def divergence_of(policy: Document) -> Document | None:
    """The row that stands for a policy: the decode path, by which text is made; else the other."""
    rows = {row["path"]: row for row in policy["divergence"]}
    found: Document | None = rows.get("decode", rows.get("prefill"))
    return found


def total_of(policy: Document) -> Document | None:
    """The row over all categories."""
    return next((row for row in policy["tasks"] if row["category"] == TOTAL), None)


def ratio_of(policy: Document) -> float | None:
    """The size of the cache over the baseline's."""
    return None if policy["memory"] is None else policy["memory"]["ratio"]


def each(document: Document, part: str) -> Iterator[tuple[Document, Document]]:
    """Yield every row of a part with its policy."""
    for policy in document["policies"]:
        for row in policy[part]:
            yield policy, row
