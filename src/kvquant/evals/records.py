"""A run on disk: one append-only JSONL file, a line per sample, each on the disk before the next is asked.

``samples.jsonl`` holds lines of two kinds. ``run`` says what is asked of what; one is written when a run is
started and one each time it is resumed. ``sample`` is one finished sample. A last line without its end was
cut off by a kill or a full disk: it is passed over by readers and removed when the run is resumed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from kvquant.errors import KVQuantError, UsageError
from kvquant.evals.outcome import Outcome

SCHEMA_VERSION = 1
FILE_NAME = "samples.jsonl"
LOCK_NAME = "lock"

_T = TypeVar("_T")


@dataclass(frozen=True)
class CountedTest:
    """A test as it counted when the run was made."""

    name: str
    category: str
    weight: float


@dataclass(frozen=True)
class RunInfo:
    """What was asked of what, where and by which version.

    model_report: what the endpoint's list says about the model. started: UTC, ISO 8601. git_commit: kvquant's
    own, None outside a clone. machine: `kvquant.evals.machine.Machine` as JSON.
    """

    suite: str
    suite_digest: str
    seed: int
    n: int
    model: str
    model_report: Mapping[str, Any] | None
    base_url: str
    tests: tuple[CountedTest, ...]
    argv: tuple[str, ...]
    started: str
    kvquant_version: str
    git_commit: str | None
    machine: Mapping[str, Any]

    @property
    def identity(self) -> tuple[str, str, int, str]:
        """What must agree for a run to be resumed."""
        return self.suite, self.suite_digest, self.seed, self.model


@dataclass(frozen=True)
class SampleRecord:
    """One finished sample. wall_seconds: from sending the request to the end of the answer.

    answer: the text as the endpoint sent it, reasoning included. tool_calls: (name, arguments).
    """

    id: str
    test: str
    category: str
    outcome: Outcome
    detail: str
    wall_seconds: float
    answer: str = ""
    tool_calls: tuple[tuple[str, str], ...] = ()
    finish_reason: str | None = None
    n_prompt_tokens: int | None = None
    n_completion_tokens: int | None = None
    labels: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run as read back: what it was when last started, and its samples in the order they were finished."""

    folder: Path
    info: RunInfo
    samples: tuple[SampleRecord, ...]


class RunLog:
    """The file of a run that is going on; `open_log` makes one."""

    def __init__(self, file: BinaryIO, path: Path, finished: Mapping[str, SampleRecord]) -> None:
        self._file = file
        self._path = path
        self.finished = dict(finished)

    def append(self, record: SampleRecord) -> None:
        """Write one sample; it is on the disk when this returns. Raises KVQuantError on a full disk."""
        self._write({"kind": "sample", **asdict(record)})
        self.finished[record.id] = record

    def start(self, info: RunInfo) -> None:
        """Write the line that says what follows."""
        self._write({"kind": "run", "schema_version": SCHEMA_VERSION, **asdict(info)})

    def _write(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line, ensure_ascii=True, allow_nan=False).encode() + b"\n"
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise KVQuantError(
                f"cannot write {self._path}: {error.strerror}; the {len(self.finished)} samples before this "
                "are kept, run the same command again to go on"
            ) from error


def read_run(folder: Path) -> Run:
    """Read a run, finished or not. Raises KVQuantError, one line, when there is none or a line is damaged."""
    path = folder / FILE_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KVQuantError(
            f"{folder} holds no run: {path.name}: {error.strerror}; kvquant eval --out makes one"
        ) from error
    run = _parse(data[: _whole(data)], path)
    if run is None:
        raise KVQuantError(f"{folder} holds no run: {path.name} has no complete line")
    return run


@contextmanager
def open_log(folder: Path, info: RunInfo) -> Iterator[RunLog]:
    """Start or resume the run in ``folder``, alone.

    Raises UsageError when another kvquant runs there, or when the folder holds a run of something else;
    KVQuantError when a line is damaged or the folder cannot be written.
    """
    path = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_NAME).open("ab")
    except OSError as error:
        raise KVQuantError(f"cannot write in {folder}: {error.strerror}; name a writable folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another kvquant runs in {folder}; wait for it or name another --out") from None
        try:
            file = path.open("a+b")
        except OSError as error:
            raise KVQuantError(f"cannot write {path}: {error.strerror}") from error
        with file:
            file.seek(0)
            data = file.read()
            run = _parse(data[: _whole(data)], path)
            if run is not None:
                check_same(run, info)
            file.truncate(_whole(data))
            log = RunLog(file, path, {} if run is None else {s.id: s for s in run.samples})
            log.start(info)
            yield log


def check_same(run: Run, info: RunInfo) -> None:
    """Raise UsageError when ``info`` does not go on with ``run``, naming what differs."""
    names = ("suite", "version of the suite", "seed", "model")
    for name, old, new in zip(names, run.info.identity, info.identity, strict=True):
        if old != new:
            raise UsageError(
                f"{run.folder} holds a run with another {name} ({str(old)[:60]}, now {str(new)[:60]}); "
                "name another --out"
            )


def _whole(data: bytes) -> int:
    """How many bytes of ``data`` are complete lines."""
    return data.rfind(b"\n") + 1


def _parse(data: bytes, path: Path) -> Run | None:
    info: RunInfo | None = None
    samples: dict[str, SampleRecord] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            fields_of = json.loads(line)
            kind = fields_of.pop("kind")
            if kind == "run":
                info = _run_info(fields_of, path)
            elif kind == "sample":
                record = _sample(fields_of)
                samples.setdefault(record.id, record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise KVQuantError(
                f"{path}: line {number} is damaged; remove that line to go on without it"
            ) from error
    return None if info is None else Run(path.parent, info, tuple(samples.values()))


def _run_info(document: dict[str, Any], path: Path) -> RunInfo:
    version = document.pop("schema_version")
    if version != SCHEMA_VERSION:
        raise KVQuantError(f"{path}: schema version {version}, this kvquant reads {SCHEMA_VERSION}")
    tests = tuple(_built(CountedTest, test) for test in document.pop("tests"))
    return _built(RunInfo, {**document, "tests": tests, "argv": tuple(document.pop("argv"))})


def _sample(document: dict[str, Any]) -> SampleRecord:
    calls = tuple((str(name), str(arguments)) for name, arguments in document.pop("tool_calls"))
    checked = {
        "outcome": Outcome(document.pop("outcome")),
        "tool_calls": calls,
        "wall_seconds": float(document.pop("wall_seconds")),
    }
    return _built(SampleRecord, {**document, **checked})


def _built(kind: type[_T], document: dict[str, Any]) -> _T:
    """Build a dataclass; fields that a later version has added are passed over."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: item for name, item in document.items() if name in known})
