"""A run on disk: one append-only JSONL file, a line per sample, each on the disk before the next is asked.

``samples.jsonl`` holds lines of two kinds. ``run`` says what is asked of what; one is written when a run is
started and one each time it is resumed. ``sample`` is one sample: answered, or left unanswered because the
endpoint failed (outcome ``error``), in which case the next run asks it again. A last line without its end was
cut off by a kill or a full disk: it is passed over by readers and removed when the run is resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvquant.documents import from_document, to_document
from kvquant.errors import KVQuantError, UsageError
from kvquant.evals.append_only import DamagedLine, LineWriter, alone_in, appending, parse_lines, whole_lines
from kvquant.evals.outcome import Outcome
from kvquant.evals.suite import Rules

SCHEMA_VERSION = 1
FILE_NAME = "samples.jsonl"


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
    own, None outside a clone. machine: `kvquant.evals.machine.Machine` as JSON. rules: the suite's, None in
    runs of versions that did not keep them.
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
    rules: Rules | None = None

    @property
    def identity(self) -> tuple[str, str, int, str]:
        """What must agree for a run to be resumed."""
        return self.suite, self.suite_digest, self.seed, self.model


@dataclass(frozen=True)
class SampleRecord:
    """One sample. wall_seconds: from sending the request to the end of the answer.

    answer: the text as the endpoint sent it, with the reasoning that stands in it. reasoning: what the
    endpoint sent apart from the answer. tool_calls: (name, arguments).
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
    reasoning: str = ""

    @property
    def is_answered(self) -> bool:
        """Whether the model has answered, or used up its time; not when the endpoint failed."""
        return self.outcome is not Outcome.ERROR


@dataclass(frozen=True)
class Run:
    """A run as read back: what it was when last started, and its samples in the order they were recorded.

    samples: those answered, which are final. unanswered: those the endpoint failed on so far; they say
    nothing about the model and are asked again when the run is resumed.
    """

    folder: Path
    info: RunInfo
    samples: tuple[SampleRecord, ...]
    unanswered: tuple[SampleRecord, ...] = ()


class RunLog:
    """The file of a run that is going on; `open_log` makes one."""

    def __init__(self, lines: LineWriter, info: RunInfo, finished: Mapping[str, SampleRecord]) -> None:
        self._lines, self._info = lines, info
        self._is_begun = False
        self.finished = dict(finished)

    def append(self, record: SampleRecord) -> None:
        """Write one sample; it is on the disk when this returns. Raises KVQuantError on a full disk.

        The line that says what follows stands before the first one, so that a run without any leaves nothing.
        """
        if not self._is_begun:
            self._write({"kind": "run", "schema_version": SCHEMA_VERSION, **to_document(self._info)})
            self._is_begun = True
        self._write({"kind": "sample", **to_document(record)})
        if record.is_answered:
            self.finished[record.id] = record

    def _write(self, line: Mapping[str, Any]) -> None:
        self._lines.write(line, f"the {len(self.finished)} samples before this are kept")


def read_run(folder: Path) -> Run:
    """Read a run, finished or not. Raises KVQuantError, one line, when there is none or a line is damaged."""
    path = folder / FILE_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KVQuantError(
            f"{folder} contains no run: {path.name}: {error.strerror}; kvquant eval --out makes one"
        ) from error
    run = _parse(whole_lines(data), path)
    if run is None:
        raise KVQuantError(f"{folder} contains no run: {path.name} has no complete line")
    return run


@contextmanager
def open_log(folder: Path, info: RunInfo) -> Iterator[RunLog]:
    """Start or resume the run in ``folder``, alone.

    Raises UsageError when another kvquant runs there, or when the folder holds a run of something else;
    KVQuantError when a line is damaged or the folder cannot be written.
    """
    path = folder / FILE_NAME
    finished: dict[str, SampleRecord] = {}

    def check(data: bytes) -> None:
        run = _parse(data, path)
        if run is not None:
            check_same(run, info)
            finished.update({sample.id: sample for sample in run.samples})

    with alone_in(folder), appending(path, check) as lines:
        yield RunLog(lines, info, finished)


def check_same(run: Run, info: RunInfo) -> None:
    """Raise UsageError when ``info`` does not go on with ``run``, naming what differs."""
    names = ("suite", "version of the suite", "seed", "model")
    for name, old, new in zip(names, run.info.identity, info.identity, strict=True):
        if old != new:
            raise UsageError(
                f"{run.folder} contains a run with another {name} ({str(old)[:60]}, now {str(new)[:60]}); "
                "name another --out"
            )


def _parse(data: bytes, path: Path) -> Run | None:
    info: RunInfo | None = None
    samples: dict[str, SampleRecord] = {}

    def read(document: dict[str, Any]) -> None:
        nonlocal info
        kind = document["kind"]
        if kind == "run":
            version = document["schema_version"]
            if version != SCHEMA_VERSION:
                raise KVQuantError(f"{path}: schema version {version}, this kvquant reads {SCHEMA_VERSION}")
            info = from_document(RunInfo, document, kind, error=DamagedLine)
        elif kind == "sample":
            record = from_document(SampleRecord, document, kind, error=DamagedLine)
            if record.id not in samples or not samples[record.id].is_answered:
                samples.pop(record.id, None)
                samples[record.id] = record

    parse_lines(data, path, read)
    if info is None:
        return None
    answered = tuple(record for record in samples.values() if record.is_answered)
    unanswered = tuple(record for record in samples.values() if not record.is_answered)
    return Run(path.parent, info, answered, unanswered)
