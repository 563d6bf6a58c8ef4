"""A benchmark's record: where, with what and from which sources its numbers come, and where it is written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kvquant.files import write_atomic
from kvquant.results.provenance import command_line
from kvquant.shipped import VERSION

ROOT = Path(__file__).resolve().parent.parent


def provenance(script: str, packages: tuple[str, ...]) -> dict[str, Any]:
    """Return time, command, commit, machine, load, and versions: ``packages``, kvquant, Python."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": command_line(script, sys.argv[1:]),
        "commit": commit or None,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform()},
        "load_average_at_start": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages}
        | {"kvquant": VERSION, "python": platform.python_version()},
    }


def write_record(record: dict[str, Any], path: Path | None) -> None:
    """Write the record as JSON to ``path``, or to stdout when there is none."""
    text = json.dumps(record, indent=1) + "\n"
    if path is None:
        print(text, end="")
    else:
        write_atomic(path, text)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
