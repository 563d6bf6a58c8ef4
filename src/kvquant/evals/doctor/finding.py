"""One thing that a preflight check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """FIX: a run would fail or mean nothing. WARNING: it may be worse or slower than it could. NOTE: good to
    know.
    """

    FIX = "must fix"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """subject: what it is about, such as a file. what: what was seen. fix: what to do, empty for a note."""

    severity: Severity
    subject: str
    what: str
    fix: str = ""
