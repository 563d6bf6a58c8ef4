"""Where the evaluation's data is: the suites and the facts that some tasks ask about."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from kvquant.cache import checkout_root
from kvquant.documents import read_toml
from kvquant.errors import UsageError

ENVIRONMENT_VARIABLE = "KVQUANT_EVAL"


def eval_folder() -> Path:
    """The folder ``eval/``: ``$KVQUANT_EVAL``, or the clone's. Raises UsageError where there is neither."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(named).absolute()
    root = checkout_root()
    if root is None:
        raise UsageError(
            f"this installation has no eval/ folder; work in a clone, or set {ENVIRONMENT_VARIABLE} to a "
            "copy of its eval/ folder"
        )
    return root / "eval"


@cache
def facts(name: str) -> tuple[tuple[Any, ...], ...]:
    """Return the rows of ``eval/facts/NAME.toml``."""
    return tuple(tuple(row) for row in _facts_file(name)[name])


def all_facts() -> dict[str, dict[str, Any]]:
    """Return everything in ``eval/facts``, by the names of the files without their ending."""
    return {
        path.stem: read_toml(dict[str, Any], path)
        for path in sorted((eval_folder() / "facts").glob("*.toml"))
    }


def words(name: str) -> tuple[str, ...]:
    """Return a list of ``eval/facts/words.toml``."""
    return tuple(_facts_file("words")[name])


@cache
def _facts_file(name: str) -> dict[str, Any]:
    return read_toml(dict[str, Any], eval_folder() / "facts" / f"{name}.toml")
