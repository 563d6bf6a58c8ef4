"""What the folder of a validation holds, and what its files are called.

validation.jsonl               what is asked and every finished part, a line each, appended and synced
results.json                   the result document, rewritten whole after every part
tasks/POLICY/samples.jsonl     answers under that policy: a run as `kvquant eval` writes it
tasks/POLICY.repeat/           the baseline asked once more
divergence/POLICY.PATH.jsonl   every scored token of a policy on a path, a line a chunk of text
logs/POLICY.PART.log           what a program printed that failed
lock                           held while a kvquant works here
work/                          temporary files of running programs, gone at the end
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

JOURNAL = "validation.jsonl"
RESULT = "results.json"
TASKS = "tasks"
REPEAT_SUFFIX = ".repeat"

_LONGEST_NAME = 80


def folder_name(policy: str) -> str:
    """Return a file name for a canonical policy text: different texts have different names."""
    name = policy.removeprefix("*:").replace("*", "all").replace(":", "=").replace("/", "+")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 13]}-{hashlib.sha256(policy.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Folder:
    """The paths inside the folder of a validation."""

    root: Path

    @property
    def journal(self) -> Path:
        """The append-only record."""
        return self.root / JOURNAL

    @property
    def result(self) -> Path:
        """The result document."""
        return self.root / RESULT

    @property
    def work(self) -> Path:
        """Where running programs keep their temporary files."""
        return self.root / "work"

    @property
    def logs(self) -> Path:
        """What programs printed that failed."""
        return self.root / "logs"

    def tasks(self, policy: str, *, repeat: bool = False) -> Path:
        """The run of a policy (canonical text)."""
        return self.root / TASKS / (folder_name(policy) + (REPEAT_SUFFIX if repeat else ""))

    def divergence(self, policy: str, path: str) -> Path:
        """The per-token records of a policy's divergence on a path."""
        return self.root / "divergence" / f"{folder_name(policy)}.{path}.jsonl"

    def log(self, policy: str, part: str) -> Path:
        """Where the log of a failed part is kept."""
        return self.logs / f"{folder_name(policy)}.{part}.log"


def task_folders(root: Path) -> list[Path]:
    """The runs of the tests in the folder of a validation, by name."""
    return sorted(path for path in (root / TASKS).glob("*") if path.is_dir())


def is_repeat(run: Path) -> bool:
    """Whether a run is the baseline's second."""
    return run.name.endswith(REPEAT_SUFFIX)


def is_validation(root: Path) -> bool:
    """Whether ``root`` is the folder of a validation."""
    return (root / JOURNAL).is_file() or (root / RESULT).is_file()
