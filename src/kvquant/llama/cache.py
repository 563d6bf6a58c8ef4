"""Where downloads, sources and builds are kept: ``.cache/`` of the clone, or the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT_VARIABLE = "KVQUANT_CACHE"


def checkout_root() -> Path | None:
    """The clone this package runs from; None when it was installed without one."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "patches" / "llama.cpp" / "series").is_file() else None


def cache_folder() -> Path:
    """The folder for everything that can be made again: ``$KVQUANT_CACHE``, the clone's ``.cache``, or the
    user's.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(named).absolute()
    root = checkout_root()
    if root is not None:
        return root / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvquant"
