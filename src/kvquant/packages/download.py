"""Downloads one distribution through pip's own client, by version and hash, as pip is configured here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvquant.errors import AssetError
from kvquant.packages import sdist_backend
from kvquant.processes.background import BackgroundProgram

#: How often the growing download is looked at, in seconds.
POLL_SECONDS = 0.2

#: The build backends of the source distributions that are fetched, for which ``sdist_backend`` stands in.
_BACKENDS = (("setuptools", "build_meta.py"), ("scikit_build_core", "build.py"))


@dataclass(frozen=True)
class Distribution:
    """One file of the package index: a wheel, or with ``sdist`` the source distribution.

    sha256: lower-case hex, of the file; None leaves it to the index to say which bytes are meant. n_bytes:
    its size, None when unknown.
    """

    package: str
    version: str
    sha256: str | None
    n_bytes: int | None = None
    sdist: bool = False


def download(wanted: Distribution, folder: Path, on_bytes: Callable[[int], None] = lambda _: None) -> Path:
    """Download a distribution into the empty ``folder`` and return its path; pip has checked its hash.

    ``on_bytes`` is given the number of bytes that are there so far. A wheel for another Python is taken too:
    it is read, never installed; of a source distribution none of its own code runs. pip ends with the caller,
    however the caller ends. Raises AssetError, one line.
    """
    files, scratch, backends = folder / "files", folder / "scratch", folder / "backends"
    for made in (files, scratch, backends):
        made.mkdir()
    hashed = f" --hash=sha256:{wanted.sha256}" if wanted.sha256 else ""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wanted.package}=={wanted.version}{hashed}\n")
    options = ["--no-deps", "--ignore-requires-python", *(["--require-hashes"] if hashed else [])]
    # What pip has downloaded is kept elsewhere: a second copy in its cache would only take space.
    options += ["--no-cache-dir", "--progress-bar", "off", "--no-input"]
    environment = {**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if wanted.sdist:
        _stand_in(backends)
        environment["PYTHONPATH"] = str(backends)
        # --use-pep517: without it pip would run a setup.py where there is no pyproject.toml.
        options += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
    else:
        options += ["--only-binary", ":all:"]
    argv = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(requirements)]
    log = folder / "pip.log"
    with BackgroundProgram([*argv, "--dest", str(files)], log, env=environment, cwd=folder) as program:
        while (status := program.wait(POLL_SECONDS)) is None:
            on_bytes(_n_bytes_below(folder))
        found = list(files.iterdir())
        if status or len(found) != 1:
            raise AssetError(f"{wanted.package} {wanted.version}: pip {_reason(program.log_text())}")
    return found[0]


def _stand_in(folder: Path) -> None:
    """Put ``sdist_backend`` into ``folder`` under the name of each build backend."""
    for package, module in _BACKENDS:
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
        shutil.copyfile(sdist_backend.__file__, folder / package / module)


def _n_bytes_below(folder: Path) -> int:
    try:
        return max((path.stat().st_size for path in folder.glob("scratch/*/*.*")), default=0)
    except OSError:
        return 0  # pip has just moved what was there


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
