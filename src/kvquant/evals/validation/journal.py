"""The record of a validation on disk: what is asked, and each part of a policy when it is finished or fails.

``validation.jsonl`` is append-only. A ``start`` line is written whenever a validation is started or resumed
and says under which conditions the lines after it were made; ``measured`` is a finished part, ``round`` one
run of llama-bench, ``failed`` a part that came to nothing. Each line has its time, and the temperatures,
clocks and free memory of that time. Answers are in files of their own (`kvquant.evals.records`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvquant.errors import KVQuantError, UsageError
from kvquant.evals.append_only import LineWriter, alone_in, appending, parse_lines, whole_lines
from kvquant.evals.machine import Machine, read_machine
from kvquant.evals.speed import SpeedRound
from kvquant.evals.validation.documents import from_document
from kvquant.evals.validation.folder import Folder
from kvquant.evals.validation.result import Failure, ModelFile, SuiteUsed

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class NamedPolicy:
    """A policy's label and its canonical text."""

    label: str
    policy: str


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
            "version of the suite": (self.suite.digest, to_comparable(self.parts)),
            "seed": self.seed,
            "context": self.n_ctx,
            "number of threads": self.n_threads,
            "baseline": self.policies[0].policy,
            "build of llama.cpp": to_comparable(self.build),
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
        self._write("start", schema_version=SCHEMA_VERSION, **asdict(start))

    def measure(self, policy: str, part: str, value: Mapping[str, Any], seconds: float) -> None:
        """Write a finished part and what it took."""
        self._write("measured", policy=policy, part=part, value=dict(value), seconds=round(seconds, 3))
        self.measured[policy, part] = value

    def round(self, measured: SpeedRound) -> None:
        """Write one run of llama-bench."""
        self._write("round", value=measured.document())
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
            raise UsageError(f"{root} holds a validation with another {name}; name another --out")


def to_comparable(value: Any) -> Any:
    """Return JSON data with lists for tuples, so that what was written equals what is read back."""
    if isinstance(value, Mapping):
        return {key: to_comparable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_comparable(item) for item in value]
    return value


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
        rounds.append(SpeedRound.from_document(line["value"]))
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
