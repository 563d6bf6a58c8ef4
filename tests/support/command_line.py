"""kvquant as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KVQUANT = (sys.executable, "-m", "kvquant")
"""Starts it; arguments follow."""


def run_kvquant(
    *arguments: str | Path, folder: Path | None = None, timeout_seconds: float = 120.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, in ``folder`` if named, with these variables added to the environment."""
    return subprocess.run(
        [*KVQUANT, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
        env={**os.environ, **environment},
    )
