"""The divergence part."""

from __future__ import annotations

from kvquant.evals.validation.folder import Folder
from kvquant.evals.validation.journal import JournalWriter
from kvquant.evals.validation.plan import Plan, PlannedPolicy


def run_divergence(
    plan: Plan, policy: PlannedPolicy, part: str, folder: Folder, journal: JournalWriter
) -> None:
    pass
