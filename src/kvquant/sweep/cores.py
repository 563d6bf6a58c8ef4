"""Cores by number and by name: all of them, the big ones of a board with two kinds, the little ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kvquant.errors import UsageError
from kvquant.evals.machine import core_list
from kvquant.results.sweep import ALL_CPUS

BIG, LITTLE = "big", "little"
NAMES = (ALL_CPUS, BIG, LITTLE)

_BIG_PART = "0xd0b"
"""The part number of a Cortex-A76 in /proc/cpuinfo, as tools/serve_rk.sh looks for it."""

_PIECE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_MUCH_FASTER = 1.15
"""Big cores of one board differ by a few percent (binning); little ones are far below."""


def parse_cores(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as 4-7 or 0,2-3 (or 0+2-3). Raises UsageError for anything else."""
    found: set[int] = set()
    for piece in re.split(r"[,+]", text):
        match = _PIECE.fullmatch(piece.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UsageError(f"cpus {text!r}: write numbers such as 4-7 or 0+2-3, or {', '.join(NAMES)}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def named_cores(root: Path = Path("/")) -> dict[str, str]:
    """Return the cores of this machine by name, as taskset takes them; big and little only where there are
    both.

    By the part number of the CPU, else by what the kernel says of capacity or of the highest clock.
    """
    online = _online(root)
    found = {ALL_CPUS: core_list(online)}
    big = _by_part(root, online) or _by_measure(root, online)
    if big and len(big) < len(online):
        found |= {BIG: core_list(big), LITTLE: core_list([core for core in online if core not in big])}
    return found


def resolve_cores(text: str, known: Mapping[str, str]) -> str | None:
    """Return the cores that an entry of a plan means on a board whose cores are ``known``; None: do not bind.

    Raises UsageError for cores the board does not have.
    """
    if text == ALL_CPUS:
        return None
    if text in NAMES:
        if text not in known:
            raise UsageError(
                f"cpus {text!r}: this machine has one kind of core; write numbers among {known[ALL_CPUS]}, "
                f"or all"
            )
        return known[text]
    asked = parse_cores(text)
    missing = sorted(set(asked) - set(parse_cores(known[ALL_CPUS])))
    if missing:
        raise UsageError(
            f"cpus {text!r}: this machine has no core {core_list(missing)}; it has {known[ALL_CPUS]}"
        )
    return core_list(list(asked))


def _online(root: Path) -> list[int]:
    text = _read(root / "sys/devices/system/cpu/online") or "0"
    return list(parse_cores(text))


def _by_part(root: Path, online: list[int]) -> list[int]:
    found, core = [], -1
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor" and value.isdigit():
            core = int(value)
        elif name == "CPU part" and value == _BIG_PART and core in online:
            found.append(core)
    return found


def _by_measure(root: Path, online: list[int]) -> list[int]:
    for file in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        values = {core: _read(root / f"sys/devices/system/cpu/cpu{core}" / file) for core in online}
        numbers = {core: int(text) for core, text in values.items() if text and text.isdigit()}
        if len(numbers) == len(online) and max(numbers.values()) > _MUCH_FASTER * min(numbers.values()):
            limit = max(numbers.values()) / _MUCH_FASTER
            return [core for core, value in numbers.items() if value >= limit]
    return []


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
