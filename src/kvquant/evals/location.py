"""Where the evaluation's data is: the suites and the facts that some tasks ask about."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from kvquant import shipped
from kvquant.documents import read_toml

ENVIRONMENT_VARIABLE = "KVQUANT_EVAL"


def eval_folder() -> Path:
    """The folder of suites and facts: ``$KVQUANT_EVAL``, or the one that comes with the package."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(named).absolute() if named else shipped.eval_folder()


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
