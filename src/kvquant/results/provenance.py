"""What a record says of the command that made it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

# A path from the root, alone or behind what an option or a policy file puts before it.
_FROM_ROOT = re.compile(r"(?P<before>--[a-z-]+=@?|@|)(?P<path>/.+)", re.DOTALL)


def command_line(program: str, words: Iterable[str]) -> list[str]:
    """Return a command as a record keeps it: of a path from the root only the last name.

    Where files were on one machine means nothing on another, and a record is meant to be passed on.
    """
    return [program, *(_portable(word) for word in words)]


def _portable(word: str) -> str:
    found = _FROM_ROOT.fullmatch(word)
    return word if found is None else found["before"] + PurePosixPath(found["path"]).name
