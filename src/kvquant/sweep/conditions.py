"""A board while it is measured: temperatures, clocks, free memory; cooling before, watching during,
guarding.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from kvquant.errors import KVQuantError, LlamaError
from kvquant.evals.machine import Machine, read_machine
from kvquant.results.sweep import Conditions, Watched
from kvquant.units import format_n_bytes

SAMPLE_SECONDS = 0.5
_COOL_POLL_SECONDS = 2.0


class MemoryLow(LlamaError):
    """Less memory is free than must be left alone."""


def read_conditions(root: Path = Path("/")) -> Conditions:
    """Look at the machine below ``root``; what is missing there is left out."""
    return conditions_of(read_machine(root), root)


def conditions_of(machine: Machine, root: Path) -> Conditions:
    """Return what changes from one moment to the next."""
    return Conditions(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        celsius={zone.name: zone.celsius for zone in machine.zones},
        core_khz={
            str(core.index): khz
            for core in machine.cores
            if (khz := _number(root / f"sys/devices/system/cpu/cpu{core.index}/cpufreq/scaling_cur_freq"))
            is not None
        },
        clocks_hz={clock.name: clock.current_hz for clock in machine.clocks},
        cooling=_cooling(root),
        available_n_bytes=machine.available_n_bytes,
        load=_load(root),
    )


def cool_down(
    below_celsius: float,
    at_most_seconds: float,
    read: Callable[[], Conditions] = read_conditions,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Wait until every sensor is below a temperature; the seconds waited. Without sensors that is none."""
    waited = 0.0
    while waited < at_most_seconds and any(value >= below_celsius for value in read().celsius.values()):
        pause = min(_COOL_POLL_SECONDS, at_most_seconds - waited)
        sleep(pause)
        waited += pause
    return waited


def drop_page_cache(root: Path = Path("/")) -> None:
    """Let the kernel forget the files it holds. Raises KVQuantError where that is not allowed."""
    try:
        os.sync()
        (root / "proc/sys/vm/drop_caches").write_text("3\n")
    except OSError as error:
        raise KVQuantError(
            f"drop_page_cache: {error.strerror}; run as root, or leave drop_page_cache out of the plan"
        ) from error


class Watcher:
    """Samples a board in a thread of its own while its block runs, and ends what it guards when less than
    ``reserve`` bytes are free.
    """

    def __init__(self, reserve: int, root: Path = Path("/"), every_seconds: float = SAMPLE_SECONDS) -> None:
        self.is_low = False
        self._reserve, self._root, self._every = reserve, root, every_seconds
        self._end: Callable[[], None] = lambda: None
        self._seen: list[Conditions] = []
        self._limits: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watcher:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def guard(self, end: Callable[[], None]) -> None:
        """From now on, call ``end`` once when too little is free; at once where that is so already."""
        self._end = end
        if self.is_low:
            end()

    def check(self) -> None:
        """Raise MemoryLow when the guard has been reached: for the time in which there is nothing to stop
        yet.
        """
        if self.is_low:
            raise MemoryLow(self.low_text)

    @property
    def low_text(self) -> str:
        """What the guard says."""
        return f"less than {format_n_bytes(self._reserve)} was free: the guard ended it"

    def watched(self) -> Watched:
        """Return the extremes so far."""
        celsius = [value for seen in self._seen for value in seen.celsius.values()]
        free = [seen.available_n_bytes for seen in self._seen if seen.available_n_bytes is not None]
        khz = [value for seen in self._seen for value in seen.core_khz.values()]
        return Watched(
            n_samples=len(self._seen),
            max_celsius=max(celsius, default=None),
            min_available_n_bytes=min(free, default=None),
            min_core_khz=min(khz, default=None),
            throttled=self._throttled(),
        )

    def _throttled(self) -> bool | None:
        first = self._seen[0]
        if not first.cooling and not self._limits:
            return None
        cooled = any(
            state > first.cooling.get(name, state)
            for seen in self._seen
            for name, state in seen.cooling.items()
        )
        hot = any(
            value >= self._limits.get(name, float("inf"))
            for seen in self._seen
            for name, value in seen.celsius.items()
        )
        return cooled or hot

    def _sample(self) -> None:
        machine = read_machine(self._root)
        self._limits |= {zone.name: zone.hot for zone in machine.zones if zone.hot is not None}
        seen = conditions_of(machine, self._root)
        self._seen.append(seen)
        free = seen.available_n_bytes
        if free is not None and free < self._reserve and not self.is_low:
            self.is_low = True
            self._end()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self._sample()


def _cooling(root: Path) -> dict[str, int]:
    """States of the devices that slow clocks down or blow, by type and number; idle ones are 0."""
    found = {}
    for path in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        state = _number(path / "cur_state")
        if state is not None:
            found[path.name] = state
    return found


def _load(root: Path) -> float | None:
    try:
        return float((root / "proc/loadavg").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
