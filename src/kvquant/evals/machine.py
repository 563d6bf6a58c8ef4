"""What a measurement should say about the machine it ran on, read from /proc and /sys."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Core:
    """One core that is online. max_khz and governor are None where the kernel does not tell."""

    index: int
    max_khz: int | None
    governor: str | None


@dataclass(frozen=True)
class Zone:
    """A temperature sensor. hot: degrees Celsius from which the kernel slows down, None if unknown."""

    name: str
    celsius: float
    hot: float | None


@dataclass(frozen=True)
class Clock:
    """A device with a scaled clock, such as the memory controller (dmc)."""

    name: str
    governor: str | None
    current_hz: int | None
    max_hz: int | None


@dataclass(frozen=True)
class Machine:
    """A machine at one moment. soc: such as rk3588. What is not known is None, such as board and soc where
    there is no device tree.
    """

    arch: str
    kernel: str
    board: str | None
    soc: str | None
    cores: tuple[Core, ...]
    zones: tuple[Zone, ...]
    clocks: tuple[Clock, ...]
    memory_n_bytes: int | None
    available_n_bytes: int | None


def read_machine(root: Path = Path("/")) -> Machine:
    """Look at the machine below ``root``. What is missing or unreadable is left out, not guessed."""
    memory = _meminfo(root / "proc/meminfo")
    return Machine(
        arch=platform.machine(),
        kernel=platform.release(),
        board=_text(root / "proc/device-tree/model"),
        soc=_soc(root / "proc/device-tree/compatible"),
        cores=tuple(_core(path) for path in _numbered(root / "sys/devices/system/cpu", "cpu")),
        zones=tuple(
            zone
            for path in _numbered(root / "sys/class/thermal", "thermal_zone")
            if (zone := _zone(path)) is not None
        ),
        clocks=tuple(_clock(path) for path in sorted((root / "sys/class/devfreq").glob("*"))),
        memory_n_bytes=memory.get("MemTotal"),
        available_n_bytes=memory.get("MemAvailable"),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _soc(path: Path) -> str | None:
    """The chip: the last of the device tree's names, which go from the board to what it is built on."""
    names = (_text(path) or "").split("\0")
    return names[-1].rpartition(",")[2] or None


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _numbered(folder: Path, prefix: str) -> list[Path]:
    """The entries PREFIX0, PREFIX1, ... in the order of their numbers; cores that are offline left out."""
    found = [path for path in folder.glob(f"{prefix}*") if path.name.removeprefix(prefix).isdigit()]
    online = [path for path in found if _text(path / "online") != "0"]
    return sorted(online, key=lambda path: int(path.name.removeprefix(prefix)))


def _core(path: Path) -> Core:
    index = int(path.name.removeprefix("cpu"))
    return Core(index, _number(path / "cpufreq/cpuinfo_max_freq"), _text(path / "cpufreq/scaling_governor"))


def _zone(path: Path) -> Zone | None:
    milli = _number(path / "temp")
    if milli is None:
        return None
    trips = sorted(path.glob("trip_point_*_type"))
    passive = [
        value
        for trip in trips
        if _text(trip) == "passive"
        and (value := _number(trip.with_name(trip.name.replace("_type", "_temp")))) is not None
    ]
    hot = min(passive) / 1000 if passive else None
    return Zone(_text(path / "type") or path.name, milli / 1000, hot)


def _clock(path: Path) -> Clock:
    return Clock(path.name, _text(path / "governor"), _number(path / "cur_freq"), _number(path / "max_freq"))


def _meminfo(path: Path) -> dict[str, int]:
    """Byte counts by name; the kernel's unit kB is 1024 bytes."""
    counts = {}
    for line in (_text(path) or "").splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        if len(fields) == 2 and fields[0].isdigit() and fields[1] == "kB":
            counts[name] = int(fields[0]) * 1024
    return counts


def core_list(indices: list[int]) -> str:
    """Return core numbers as taskset takes them: 4-7, or 0,2-3."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
