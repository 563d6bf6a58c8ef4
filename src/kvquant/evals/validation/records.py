"""Everything a validation has on disk, read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvquant.errors import KVQuantError
from kvquant.evals.records import FILE_NAME, Run, read_run
from kvquant.evals.validation.folder import Folder
from kvquant.evals.validation.journal import Journal, read_journal


@dataclass(frozen=True)
class Records:
    """The journal, and the answers under each policy by its canonical text. repeat: the baseline's second."""

    journal: Journal
    runs: Mapping[str, Run]
    repeat: Run | None


def read_records(folder: Folder) -> Records:
    """Read the folder of a validation, finished or not. Raises KVQuantError when there is none, or a file is
    damaged.
    """
    journal = read_journal(folder)
    if journal is None:
        raise KVQuantError(f"{folder.root} holds no validation; kvquant validate --out makes one")
    policies = [named.policy for named in journal.start.policies]
    repeat = folder.tasks(policies[0], repeat=True)
    return Records(journal, read_runs(folder, policies), _run(repeat))


def read_runs(folder: Folder, policies: Iterable[str]) -> dict[str, Run]:
    """Return the answers there are, by policy."""
    found = {policy: _run(folder.tasks(policy)) for policy in policies}
    return {policy: run for policy, run in found.items() if run is not None}


def _run(folder: Path) -> Run | None:
    return read_run(folder) if (folder / FILE_NAME).exists() else None
