"""What comes with the package beside its code: the patch series, the suites and facts, the reference model.

In a clone these are the folders `patches/` and `eval/`. A wheel carries copies of them in this folder, put
there by the build (pyproject.toml), so that an installed package needs no clone.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from kvquant.errors import KVQuantError

VERSION = "0.1.0"
"""The version of the package, which the build reads here."""


def patches_folder() -> Path:
    """The folder of the patch series: ``PIN``, ``series`` and a folder for each patch."""
    return _folder("patches") / "llama.cpp"


def eval_folder() -> Path:
    """The folder of what the evaluation reads: ``suites``, ``facts`` and ``reference-model``."""
    return _folder("eval")


def reference_model() -> Path:
    """The GGUF file of the reference model (docs/reference-model.md)."""
    return eval_folder() / "reference-model" / "kvquant-reference-f16.gguf"


def checkout_root() -> Path | None:
    """The clone this package runs from; None when it was installed without one.

    For what only a clone has: the commit that a record names, and `.cache`. Data is found by the functions
    above.
    """
    root = Path(__file__).resolve().parents[3]
    return root if (root / "patches" / "llama.cpp" / "series").is_file() else None


def _folder(name: str) -> Path:
    """Return the folder ``name`` of the installed package, or else of the clone.

    Raises KVQuantError where there is neither.
    """
    installed = resources.files(__name__) / name
    if isinstance(installed, Path) and installed.is_dir():
        return installed
    root = checkout_root()
    if root is None:
        raise KVQuantError(
            f"this kvquant has no {name}/ folder, so it is neither an installed wheel nor in a clone; "
            "install the wheel"
        )
    return root / name
