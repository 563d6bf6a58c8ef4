"""Progress of long work on stderr: a terminal shows one line, rewritten; a log gets a plain line a minute."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from kvquant.tables import cells, clock

LOG_SECONDS = 60.0
"""The least time between two lines in a log, and before the first: short work says nothing there."""

_ERASE = "\r\x1b[K"


class StatusLine:
    """The state of long work on stderr, where it never ends up in a pipe with the results."""

    def __init__(self, log_seconds: float = LOG_SECONDS) -> None:
        """log_seconds: the least time between two lines where stderr is no terminal."""
        self._rewrites = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._is_shown = False
        self._log_seconds = log_seconds
        self._last = time.monotonic()

    def show(self, line: str) -> None:
        """Show ``line`` instead of the last one; in a log, if the last one is old enough."""
        if self._rewrites:
            self._is_shown = True
            click.echo(_ERASE + _cut(line, shutil.get_terminal_size().columns - 1), err=True, nl=False)
        elif time.monotonic() - self._last >= self._log_seconds:
            self._last = time.monotonic()
            click.echo(f"kvquant: {line}", err=True)

    def say(self, line: str) -> None:
        """Print a line that stays, above the one that is rewritten."""
        self.clear()
        click.echo(f"kvquant: {line}", err=True)

    def clear(self) -> None:
        """Erase the line."""
        if self._is_shown:
            self._is_shown = False
            click.echo(_ERASE, err=True, nl=False)


def _cut(line: str, width: int) -> str:
    """Return the start of ``line`` that fits: a line that wraps could not be erased."""
    while line and cells(line) > width:
        line = line[:-1]
    return line


class Counted:
    """A count of pieces of work on a `StatusLine`, with the time left."""

    def __init__(self, what: str, status: StatusLine) -> None:
        """what: the pieces, such as "layers"."""
        self._what, self._status = what, status
        self._begin(0)

    def _begin(self, done: int) -> None:
        self._first, self._last, self._start = done, done, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` pieces are done; fewer than before begin another count."""
        if done < self._last:
            self._begin(done)
        self._last = done
        counted = done - self._first
        left = (time.monotonic() - self._start) / counted * (total - done) if counted else None
        end = "" if left is None else f", {clock(left)} left"
        self._status.show(f"{self._what}: {done} of {total}{end}")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._status.say(line)


@contextmanager
def counted(what: str) -> Iterator[Counted]:
    """Give what counts pieces of work, called ``what``, and clear its line at the end."""
    status = StatusLine()
    try:
        yield Counted(what, status)
    finally:
        status.clear()
