"""Who is told what goes on in a validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kvquant.evals.validation.steps import Step


class Watch(Protocol):
    """Told about every step; policies are named by their canonical text."""

    def plan(self, found: Sequence[Step]) -> None:
        """All steps, with what is finished of each."""

    def begin(self, policy: str, part: str) -> None:
        """A part of a policy begins."""

    def advance(self, policy: str, part: str, note: str) -> None:
        """One unit of a part that has many is finished."""

    def finish(self, policy: str, part: str) -> None:
        """A part of a policy is finished."""

    def fail(self, policy: str, part: str, what: str) -> None:
        """A part of a policy came to nothing."""
