"""Runs what is left of a plan, cell by cell, each record on the disk before the next cell begins."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from kvquant.errors import KVQuantError
from kvquant.results.sweep import Board
from kvquant.sweep.cell import run_cell
from kvquant.sweep.journal import JOURNAL, Journal, JournalWriter, Record, read_journal
from kvquant.sweep.plan import SweepPlan, Task, tasks
from kvquant.sweep.probe import run_probe
from kvquant.sweep.survey import Host
from kvquant.tables import clock

OnRecord = Callable[[Record], None]


class Runner(Protocol):
    """Something that runs tasks: this machine, or the workers of a cluster."""

    @property
    def boards(self) -> tuple[Board, ...]:
        """The boards there are."""

    def run(self, left: Sequence[tuple[str | None, Task]], on_record: OnRecord) -> None:
        """Run tasks, each on the board named with it or on any, and hand over each record when it is
        there.
        """


class Here:
    """This machine."""

    def __init__(
        self, plan: SweepPlan, host: Host, on_begin: Callable[[Task], None] = lambda _: None
    ) -> None:
        self._plan, self._host, self._on_begin = plan, host, on_begin

    @property
    def boards(self) -> tuple[Board, ...]:
        """The one board."""
        return (self._host.board,)

    def run(self, left: Sequence[tuple[str | None, Task]], on_record: OnRecord) -> None:
        """Run tasks one after the other."""
        for _, task in left:
            self._on_begin(task)
            on_record(run_task(self._plan, task, self._host))


def run_task(plan: SweepPlan, task: Task, host: Host) -> Record:
    """Run a cell or a probe, alone on this machine: another kvquant that sweeps here is waited for."""
    with alone_on_the_machine():
        return run_cell(plan, task, host) if task.kind == "cell" else run_probe(plan, task, host)


@contextmanager
def alone_on_the_machine() -> Iterator[None]:
    """Hold this machine for one cell. Two that ran at a time would measure each other."""
    path = Path(tempfile.gettempdir()) / f"kvquant-sweep-{os.getuid()}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise KVQuantError(f"cannot lock {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def left_of(plan: SweepPlan, boards: Sequence[Board], journal: Journal) -> list[tuple[str | None, Task]]:
    """Return what is not recorded yet, in order, with the board that must run it where that matters.

    Shared cells are done when any board has them. A block that was begun goes on where it was begun, so that
    what is compared comes from one board.
    """
    everything = tasks(plan)
    if plan.boards == "each":
        return [
            (board.name, task)
            for task in everything
            for board in boards
            if (board.name, task.key) not in journal.records
        ]
    done = {key: board for board, key in journal.records}
    names = {board.name for board in boards}
    begun = {task.block: done[task.key] for task in everything if task.key in done}
    return [
        (begun[task.block] if begun.get(task.block) in names else None, task)
        for task in everything
        if task.key not in done
    ]


def sweep(
    plan: SweepPlan, runner: Runner, writer: JournalWriter, on_record: OnRecord = lambda _: None
) -> Journal:
    """Run what is left and return the journal. Raises KVQuantError; what was finished by then is kept."""

    def record(found: Record) -> None:
        writer.append(found)
        on_record(found)

    runner.run(left_of(plan, runner.boards, writer.journal), record)
    return writer.journal


def plan_text(plan: SweepPlan, folder: Path) -> str:
    """Say what a plan asks for and what of it is recorded, running nothing."""
    everything = tasks(plan)
    done: set[str] = set()
    if (folder / JOURNAL).exists():
        done = {key for _, key in read_journal(folder).records}
    lines = [f"{task.key}{', recorded' if task.key in done else ''}" for task in everything]
    n_left = sum(task.key not in done for task in everything)
    return "\n".join([*lines, f"{len(everything)} in all, {n_left} left"])


class Countdown:
    """How many cells are left and how long they take by what the others took."""

    def __init__(self, n_left: int, n_boards: int = 1) -> None:
        self.n, self.n_done, self._n_boards = n_left, 0, n_boards
        self._begun = time.monotonic()

    def line(self, what: str) -> str:
        """Say where the sweep stands."""
        if not self.n_done:
            return f"{self.n_done}/{self.n} {what}"
        seconds = (time.monotonic() - self._begun) / self.n_done * (self.n - self.n_done)
        return f"{self.n_done}/{self.n} {what}, {clock(seconds)} left"
