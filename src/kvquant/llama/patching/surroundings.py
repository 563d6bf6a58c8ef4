"""What stands around each edit in the last tree that fits, to show what a later tree has changed there.

``patches/llama.cpp/surroundings.json`` is written from the pinned tree by ``kvquant patch export`` and read
by ``kvquant patch check``, which then does not need that tree.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvquant.documents import read_json
from kvquant.errors import PatchError
from kvquant.llama.patching.plan import Outcome, Plan, ReadFile

#: The file in the folder of the series.
FILE = "surroundings.json"

#: How many lines are kept before an edit's place, and from it on.
LINES_BEFORE, LINES_AFTER = 8, 12

#: A stretch with fewer lines in common than this is not shown as the same place.
MIN_COMMON = 3


@dataclass(frozen=True)
class Excerpt:
    """Some lines of a file; ``line`` is the number of the first, from 1."""

    line: int
    text: str


@dataclass(frozen=True)
class Surroundings:
    """The places of every edit in one unpatched tree.

    ``tree`` is what the tree is called, ``edits`` maps "PATCH ID" to the edit's places, none for an edit that
    the tree did not want.
    """

    tree: str
    edits: Mapping[str, tuple[Excerpt, ...]]


def surroundings_of(plan: Plan, read: ReadFile, tree: str) -> Surroundings:
    """Cut the surroundings of every edit that fits out of the unpatched tree that ``plan`` was made for."""
    edits = {}
    for outcome in plan.outcomes:
        content = read(outcome.file)
        if outcome.id != "new-file" and outcome.status == "matches" and content is not None:
            lines = _lines(content)
            edits[_key(outcome)] = tuple(_excerpt(lines, line) for line in outcome.lines)
    return Surroundings(tree, edits)


def load_surroundings(patches: Path) -> Surroundings | None:
    """Read the file in the folder of a series; None when the series has none. Raises PatchError."""
    path = patches / FILE
    return read_json(Surroundings, path, error=PatchError) if path.is_file() else None


def changes_around(outcome: Outcome, known: Surroundings, content: bytes) -> list[str]:
    """What became of the places of an edit that does not fit: the lines of a unified diff for each.

    A place of which too little is left to be found gets one line that says so.
    """
    lines = _lines(content)
    said: list[str] = []
    for excerpt in known.edits.get(_key(outcome), ()):
        old = excerpt.text.split("\n")
        place = _likest(lines, old)
        name = f"{known.tree} {outcome.file}:{excerpt.line}"
        if place is None:
            said.append(f"nothing like {name} is left")
            continue
        new = lines[place : place + len(old)]
        here = f"this tree {outcome.file}:{place + 1}"
        said += difflib.unified_diff(old, new, name, here, n=len(old), lineterm="")
    return said


def _key(outcome: Outcome) -> str:
    return f"{outcome.patch} {outcome.id}"


def _excerpt(lines: Sequence[str], line: int) -> Excerpt:
    start = max(0, line - 1 - LINES_BEFORE)
    return Excerpt(start + 1, "\n".join(lines[start : line - 1 + LINES_AFTER]))


def _lines(content: bytes) -> list[str]:
    # Bytes that are no UTF-8 stay visible instead of ending the report.
    return [line.rstrip("\r") for line in content.decode("utf-8", "backslashreplace").split("\n")]


def _likest(lines: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Where the stretch of ``lines`` starts that has most lines in common with ``wanted``; None without one.

    Empty lines and single braces do not count.
    """
    weight = Counter(text for line in wanted if len(text := line.strip()) > 1)
    stripped = [line.strip() for line in lines]
    best, found = MIN_COMMON - 1, None
    here: Counter[str] = Counter()
    common = 0
    for end, text in enumerate(stripped):
        start = end - len(wanted) + 1
        if text in weight:
            here[text] += 1
            common += here[text] <= weight[text]
        if start > 0 and (gone := stripped[start - 1]) in weight:
            common -= here[gone] <= weight[gone]
            here[gone] -= 1
        if common > best:
            best, found = common, max(0, start)
    return found
