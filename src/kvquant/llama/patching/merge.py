"""Where recipes do not fit: what git's three-way merge makes of the series, for review only."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvquant.errors import PatchError
from kvquant.llama.patching.diff import diff_file
from kvquant.llama.patching.plan import FileChange, Plan, ReadFile
from kvquant.processes.command import run_captured

#: fits: the recipes say what to do; merged: git is certain; conflicts: it is not; gone: no such file here.
Verdict = Literal["fits", "merged", "conflicts", "gone"]


@dataclass(frozen=True)
class MergedFile:
    """One file that the series changes; ``change`` is None where nobody knows how."""

    path: str
    verdict: Verdict
    change: FileChange | None


def merge_plan(plan: Plan, read: ReadFile, base: Plan) -> tuple[MergedFile, ...]:
    """Complete a plan that does not fit: failing files are merged over those of the tree that ``base`` fits.

    read: the unpatched files of the plan's tree. Raises PatchError when git cannot be run.
    """
    failing = {outcome.file for outcome in plan.failures}
    here = {change.path: change for change in plan.changes}
    merged = []
    for change in base.changes:
        if change.path not in failing:
            merged.append(MergedFile(change.path, "fits", here.get(change.path)))
        else:
            merged.append(_merge(change, read(change.path)))
    return tuple(merged)


def merged_diff(files: tuple[MergedFile, ...]) -> bytes:
    """All changes as one unified diff."""
    return b"".join(diff_file(file.change) for file in files if file.change is not None)


def _merge(change: FileChange, ours: bytes | None) -> MergedFile:
    if ours is None or change.before is None:
        return MergedFile(change.path, "gone", None)
    with tempfile.TemporaryDirectory() as folder:
        names = {"ours": ours, "base": change.before, "theirs": change.after}
        for name, content in names.items():
            Path(folder, name).write_bytes(content)
        argv = ["git", "merge-file", "--quiet", *(str(Path(folder, name)) for name in names)]
        status, output = run_captured(argv)
        if status < 0 or status > 127:
            raise PatchError(f"git merge-file failed on {change.path}: {output.strip()}")
        if status:
            return MergedFile(change.path, "conflicts", None)
        after = Path(folder, "ours").read_bytes()
    return MergedFile(change.path, "merged", FileChange(change.path, ours, after))
