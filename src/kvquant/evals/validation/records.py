"""What the folder of a validation holds, written as it is finished and read back.

validation.jsonl               what is asked and every finished part, a line each, appended and synced
results.json                   the result document, rewritten whole after every part
tasks/POLICY/samples.jsonl     answers under that policy: a run as `kvquant eval` writes it
tasks/POLICY.repeat/           the baseline asked once more
divergence/POLICY.PATH.jsonl   every scored token of a policy on a path, a line a chunk of text
logs/POLICY.PART.log           what a program printed that failed
lock                           held while a kvquant works here
work/                          temporary files of running programs, gone at the end

The journal is append-only. A ``start`` line is written whenever a validation is started or resumed and says
under which conditions the lines after it were made; ``measured`` is a finished part, ``round`` one run of
llama-bench, ``failed`` a part that came to nothing. Each line has its time, and the temperatures, clocks and
free memory of that time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvquant.documents import from_document, to_document, to_json
from kvquant.errors import KVQuantError, UsageError
from kvquant.evals.append_only import LineWriter, alone_in, appending, parse_lines, whole_lines
from kvquant.evals.machine import Machine, read_machine
from kvquant.evals.records import FILE_NAME, Run, read_run
from kvquant.evals.speed import SpeedRound
from kvquant.results.transform import TransformUsed
from kvquant.results.validation import Failure, ModelFile, SuiteUsed

SCHEMA_VERSION = 1
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


def is_validation(root: Path) -> bool:
    """Whether ``root`` is the folder of a validation."""
    return (root / JOURNAL).is_file() or (root / RESULT).is_file()


def runs_in(root: Path) -> list[Path]:
    """The runs in a folder: itself, or those of a validation, the baseline's second left out."""
    if not is_validation(root):
        return [root]
    return [folder for folder in task_folders(root) if not folder.name.endswith(REPEAT_SUFFIX)]


@dataclass(frozen=True)
class NamedPolicy:
    """A policy's label and what names it in records: its canonical text, and behind an @ the beginning of the
    digest of the transform that goes with it, which ``transform`` describes.
    """

    label: str
    policy: str
    transform: TransformUsed | None = None


@dataclass(frozen=True)
class Start:
    """What a validation asks of what, and under which conditions.

    policies: the baseline first. parts: the suite's, as JSON. build: what made the programs, None if unknown.
    provenance: command line, time, version and machine.
    """

    model: ModelFile
    suite: SuiteUsed
    parts: Mapping[str, Any]
    n: int
    seed: int
    n_ctx: int
    n_threads: int | None
    policies: tuple[NamedPolicy, ...]
    build: Mapping[str, Any] | None
    provenance: Mapping[str, Any]

    @property
    def identity(self) -> dict[str, object]:
        """What must agree for a validation to be resumed, by a name for people."""
        return {
            "model": self.model.sha256,
            "suite": self.suite.name,
            "version of the suite": (self.suite.digest, to_json(self.parts)),
            "seed": self.seed,
            "context": self.n_ctx,
            "number of threads": self.n_threads,
            "baseline": self.policies[0].policy,
            "build of llama.cpp": to_json(self.build),
        }


@dataclass(frozen=True)
class Journal:
    """The lines read back.

    measured, seconds (what it took) and failures: by canonical policy and part. A part that was measured
    after it had failed is no failure.
    """

    start: Start
    measured: Mapping[tuple[str, str], Mapping[str, Any]]
    seconds: Mapping[tuple[str, str], float]
    rounds: tuple[SpeedRound, ...]
    failures: Mapping[tuple[str, str], Failure]


class JournalWriter:
    """The journal of a validation that is going on; `open_journal` makes one."""

    def __init__(self, lines: LineWriter, before: Journal | None) -> None:
        self._lines = lines
        self.measured = dict(before.measured) if before else {}
        self.rounds = list(before.rounds) if before else []
        self.failed_now: dict[str, Failure] = {}

    def start(self, start: Start) -> None:
        """Write the line that says what follows."""
        self._write("start", schema_version=SCHEMA_VERSION, **to_document(start))

    def measure(self, policy: str, part: str, value: Any, seconds: float) -> None:
        """Write a finished part, a dataclass of `kvquant.results.validation` or JSON, and what it took."""
        document = to_document(value)
        self._write("measured", policy=policy, part=part, value=document, seconds=round(seconds, 3))
        self.measured[policy, part] = document

    def round(self, measured: SpeedRound) -> None:
        """Write one run of llama-bench."""
        self._write("round", value=to_document(measured))
        self.rounds.append(measured)

    def fail(self, policy: str, part: str, what: str, log: str | None) -> None:
        """Write that a part came to nothing. The policy has failed for this start."""
        self._write("failed", policy=policy, part=part, what=what, log=log)
        self.failed_now[policy] = Failure(part, what, log)

    def _write(self, kind: str, **fields: Any) -> None:
        line = {"kind": kind, **fields, **_conditions(read_machine())}
        self._lines.write(line, "what was finished before this is kept")


@contextmanager
def open_journal(folder: Folder, start: Start) -> Iterator[JournalWriter]:
    """Start or resume the validation in ``folder``, alone.

    Raises UsageError when another kvquant works there or the folder holds a validation of something else,
    KVQuantError when a line is damaged or the folder cannot be written.
    """
    before: list[Journal] = []

    def check(data: bytes) -> None:
        journal = _parse(data, folder.journal)
        if journal is not None:
            check_same(folder.root, journal.start, start)
            before.append(journal)

    with alone_in(folder.root), appending(folder.journal, check) as lines:
        writer = JournalWriter(lines, before[0] if before else None)
        writer.start(start)
        yield writer


def _conditions(machine: Machine) -> dict[str, Any]:
    """What may change while a validation runs and explain its numbers."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "celsius": {zone.name: zone.celsius for zone in machine.zones},
        "clocks_hz": {clock.name: clock.current_hz for clock in machine.clocks},
        "available_n_bytes": machine.available_n_bytes,
    }


def read_journal(folder: Folder) -> Journal | None:
    """Read the journal; None when there is none yet. Raises KVQuantError when a line is damaged."""
    try:
        data = folder.journal.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KVQuantError(f"{folder.journal}: cannot be read: {error.strerror}") from error
    return _parse(whole_lines(data), folder.journal)


def check_same(root: Path, old: Start, new: Start) -> None:
    """Raise UsageError when ``new`` does not go on with ``old``, naming what differs."""
    for name, value in old.identity.items():
        if value != new.identity[name]:
            raise UsageError(f"{root} contains a validation with another {name}; give another --out")


def _parse(data: bytes, path: Path) -> Journal | None:
    starts: list[Start] = []
    measured: dict[tuple[str, str], Mapping[str, Any]] = {}
    seconds: dict[tuple[str, str], float] = {}
    rounds: list[SpeedRound] = []
    failures: dict[tuple[str, str], Failure] = {}

    def start(line: dict[str, Any]) -> None:
        version = line["schema_version"]
        if version != SCHEMA_VERSION:
            raise KVQuantError(f"{path}: schema version {version}, this kvquant reads {SCHEMA_VERSION}")
        starts.append(from_document(Start, line, f"{path}: start"))

    def part(line: dict[str, Any]) -> None:
        key = (str(line["policy"]), str(line["part"]))
        measured[key], seconds[key] = dict(line["value"]), float(line["seconds"])
        failures.pop(key, None)

    def one_round(line: dict[str, Any]) -> None:
        rounds.append(from_document(SpeedRound, line["value"], f"{path}: round"))
        failures.pop((rounds[-1].policy, "speed"), None)

    def failure(line: dict[str, Any]) -> None:
        failures[str(line["policy"]), str(line["part"])] = from_document(Failure, line, f"{path}: failed")

    readers: dict[str, Callable[[dict[str, Any]], None]] = {
        "start": start,
        "measured": part,
        "round": one_round,
        "failed": failure,
    }

    def read(line: dict[str, Any]) -> None:
        reader = readers.get(line["kind"])
        if reader is not None:
            reader(line)

    parse_lines(data, path, read)
    return Journal(starts[-1], measured, seconds, tuple(rounds), failures) if starts else None


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
        raise KVQuantError(f"{folder.root} contains no validation; kvquant validate --out makes one")
    policies = [named.policy for named in journal.start.policies]
    repeat = folder.tasks(policies[0], repeat=True)
    return Records(journal, read_runs(folder, policies), _run(repeat))


def read_runs(folder: Folder, policies: Iterable[str]) -> dict[str, Run]:
    """Return the answers there are, by policy."""
    found = {policy: _run(folder.tasks(policy)) for policy in policies}
    return {policy: run for policy, run in found.items() if run is not None}


def _run(folder: Path) -> Run | None:
    return read_run(folder) if (folder / FILE_NAME).exists() else None
