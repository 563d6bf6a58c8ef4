"""kvquant as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def run_kvquant(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, with these variables added to the environment."""
    return subprocess.run(
        [sys.executable, "-m", "kvquant", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
