"""The folder of a sweep: one append-only file, a line for each finished cell, and the result made from it.

    sweep.jsonl     what is run, and each finished cell and probe, on the disk before the next begins
    sweep.json      the result document; table.csv and sweep.html stand beside it
    lock            held while a kvquant works here

A kill or a power cut loses the cell that ran. ``start`` says what the lines after it belong to; one is
written whenever the sweep is started or resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvquant.documents import from_document, to_document, to_json
from kvquant.errors import KVQuantError, UsageError
from kvquant.evals.append_only import DamagedLine, LineWriter, alone_in, appending, parse_lines, whole_lines
from kvquant.llama.workspace import tree_commit
from kvquant.results.sweep import SCHEMA_VERSION, Board, CellRecord, Ending, ProbeRecord
from kvquant.shipped import VERSION, checkout_root
from kvquant.sweep.plan import SweepPlan

JOURNAL = "sweep.jsonl"
RESULT = "sweep.json"

Record = CellRecord | ProbeRecord


@dataclass(frozen=True)
class SweepStart:
    """What runs, on which boards. provenance: command line, time, version of kvquant and its commit."""

    plan: SweepPlan
    boards: tuple[Board, ...]
    provenance: Mapping[str, Any]

    @property
    def identity(self) -> dict[str, object]:
        """What must agree for a sweep to be resumed, by a name for people. Models, policies and settings may
        be added to a plan, boards come and go: records name what they are of.
        """
        models = {model.name: model.sha256 for board in self.boards for model in board.models}
        return {
            "way of measuring": to_json(self.plan.measure),
            "build of llama.cpp": sorted({board.series_digest or "" for board in self.boards}),
            "model file": models,
        }


@dataclass
class Journal:
    """What the lines say. records: the last one of each board and key; starts: in order."""

    starts: list[SweepStart] = field(default_factory=list)
    records: dict[tuple[str, str], Record] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Take a record over; one that was lost counts as not run."""
        if record.ending is not Ending.LOST:
            self.records[record.board, record.key] = record

    @property
    def cells(self) -> tuple[CellRecord, ...]:
        """The cells in the order in which they were run."""
        return tuple(record for record in self.records.values() if isinstance(record, CellRecord))

    @property
    def probes(self) -> tuple[ProbeRecord, ...]:
        """The probes in the order in which they were run."""
        return tuple(record for record in self.records.values() if isinstance(record, ProbeRecord))

    @property
    def boards(self) -> tuple[Board, ...]:
        """Every board that was there, as it was last seen."""
        found = {board.name: board for start in self.starts for board in start.boards}
        return tuple(found.values())


class JournalWriter:
    """The journal of a sweep that goes on; `open_journal` makes one."""

    def __init__(self, lines: LineWriter, journal: Journal) -> None:
        self._lines, self.journal = lines, journal

    def start(self, start: SweepStart) -> None:
        """Write what the lines after this belong to."""
        self._write("start", schema_version=SCHEMA_VERSION, **to_document(start))
        self.journal.starts.append(start)

    def append(self, record: Record) -> None:
        """Write a finished cell or probe; it is on the disk when this returns."""
        self._write("cell" if isinstance(record, CellRecord) else "probe", **to_document(record))
        self.journal.add(record)

    def _write(self, kind: str, **fields: Any) -> None:
        kept = f"the {len(self.journal.records)} records before this are kept"
        self._lines.write({"kind": kind, **fields}, kept)


def start_of(plan: SweepPlan, boards: Sequence[Board], argv: Sequence[str]) -> SweepStart:
    """Describe a sweep that starts now."""
    root = checkout_root()
    return SweepStart(
        plan,
        tuple(boards),
        {
            "argv": list(argv),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "kvquant_version": VERSION,
            "git_commit": None if root is None else tree_commit(root),
            # How threads wait for each other, which matters most where other programs run.
            "openmp": {
                name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_"))
            },
        },
    )


@contextmanager
def open_journal(folder: Path, start: SweepStart) -> Iterator[JournalWriter]:
    """Start or resume the sweep in ``folder``, alone.

    Raises UsageError when another kvquant works there or the folder holds a sweep of something else,
    KVQuantError when a line is damaged or the folder cannot be written.
    """
    path = folder / JOURNAL
    journals: list[Journal] = [Journal()]

    def check(data: bytes) -> None:
        journals[0] = _parse(data, path)
        for old in journals[0].starts[-1:]:
            check_same(folder, old, start)

    with alone_in(folder), appending(path, check) as lines:
        writer = JournalWriter(lines, journals[0])
        writer.start(start)
        yield writer


def read_journal(folder: Path) -> Journal:
    """Read a sweep, finished or not. Raises KVQuantError, one line, when there is none or a line is
    damaged.
    """
    path = folder / JOURNAL
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KVQuantError(
            f"{folder} contains no sweep: {path.name}: {error.strerror}; kvquant sweep makes one"
        ) from error
    journal = _parse(whole_lines(data), path)
    if not journal.starts:
        raise KVQuantError(f"{folder} contains no sweep: {path.name} has no complete line")
    return journal


def check_same(folder: Path, old: SweepStart, new: SweepStart) -> None:
    """Raise UsageError when ``new`` does not go on with ``old``, naming what differs."""
    before, now = old.identity, new.identity
    for name, value in before.items():
        other = now[name]
        if isinstance(value, dict) and isinstance(other, dict):
            differs = any(other.get(key, digest) != digest for key, digest in value.items())
        else:
            differs = value != other
        if differs:
            raise UsageError(f"{folder} contains a sweep with another {name}; give another --out")


def _parse(data: bytes, path: Path) -> Journal:
    journal = Journal()

    def start(line: dict[str, Any]) -> None:
        version = line["schema_version"]
        if version != SCHEMA_VERSION:
            raise KVQuantError(f"{path}: schema version {version}, this kvquant reads {SCHEMA_VERSION}")
        journal.starts.append(from_document(SweepStart, line, "start", error=DamagedLine))

    readers: dict[str, Callable[[dict[str, Any]], None]] = {
        "start": start,
        "cell": lambda line: journal.add(from_document(CellRecord, line, "cell", error=DamagedLine)),
        "probe": lambda line: journal.add(from_document(ProbeRecord, line, "probe", error=DamagedLine)),
    }

    def read(line: dict[str, Any]) -> None:
        reader = readers.get(line["kind"])
        if reader is not None:
            reader(line)

    parse_lines(data, path, read)
    return journal
