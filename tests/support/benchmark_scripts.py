"""Scripts of benchmarks/ as modules: the folder is on the path only while one is loaded, since its
`formats.py` would hide tests/formats.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def load_benchmark(name: str) -> ModuleType:
    """Return the script of that name as a module; those it imports stay loaded with it."""
    sys.path.insert(0, str(FOLDER))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
