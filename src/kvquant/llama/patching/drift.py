"""Explains an anchor that does not match: the lines of the file that look most like it."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from difflib import SequenceMatcher

#: How alike a stretch of the file must be (difflib ratio) to be worth showing, and how many are shown.
MIN_RATIO = 0.5
MAX_CANDIDATES = 3


@dataclass(frozen=True)
class Candidate:
    """A stretch of the file like the anchor: first line number (from 1), text, likeness in 0..1."""

    line: int
    text: str
    ratio: float


def nearest(content: bytes, find: bytes) -> tuple[Candidate, ...]:
    """The stretches of ``content`` most like ``find``, best first; blanks around a line do not count.

    An anchor may be a part of its lines, so the part of a stretch that fits best is what is compared.
    """
    wanted_lines = _stripped_lines(find)
    wanted = "\n".join(wanted_lines)
    lines = _stripped_lines(content)
    height = len(wanted_lines)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(wanted)
    found: list[tuple[float, int]] = []
    for start in range(max(1, len(lines) - height + 1)):
        floor = found[0][0] if len(found) == MAX_CANDIDATES else MIN_RATIO
        ratio = _likeness(matcher, "\n".join(lines[start : start + height]), wanted, floor)
        if ratio >= floor:
            keep = heapq.heappush if len(found) < MAX_CANDIDATES else heapq.heappushpop
            keep(found, (ratio, -start))
    return tuple(
        Candidate(1 - start, "\n".join(lines[-start : height - start]), ratio)
        for ratio, start in sorted(found, reverse=True)
    )


def _likeness(matcher: SequenceMatcher[str], stretch: str, wanted: str, floor: float) -> float:
    """How alike ``wanted`` and the best part of ``stretch`` are; 0 when that is surely below ``floor``.

    ``wanted`` is the matcher's second sequence already, which is where difflib keeps its index.
    """
    matcher.set_seq1(stretch)
    n_common = matcher.quick_ratio() * (len(stretch) + len(wanted)) / 2
    if n_common < floor * min(len(stretch), len(wanted)):
        return 0.0
    if len(stretch) > len(wanted):
        match = matcher.find_longest_match()
        begin = min(max(0, match.a - match.b), len(stretch) - len(wanted))
        matcher.set_seq1(stretch[begin : begin + len(wanted)])
    return matcher.ratio()


def _stripped_lines(data: bytes) -> list[str]:
    # Bytes that are no UTF-8 stay visible instead of ending the report.
    return [line.strip() for line in data.strip(b"\r\n").decode("utf-8", "backslashreplace").split("\n")]
