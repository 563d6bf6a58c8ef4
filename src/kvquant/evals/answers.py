"""Reading answers: the final number, one of several choices, a name. Shared by the tasks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction

from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong

ANSWER_LINE = "End with one line of the form 'Answer: ...'."

_MARKER = re.compile(r"answer\**\s*(?:is\b|:)[\s:*]*", re.IGNORECASE)
# A run of more digits than this is no number that any task asks for, and would be slow to convert.
_NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d{1,40})(?!\d)(?:\.\d{1,40})?")
_SHOWN = 60


def shown(text: str) -> str:
    """An answer as it may stand in one line of a record or a message: quoted, escaped and short."""
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def after_marker(answer: str) -> str:
    """Return what follows the last 'Answer:', or everything when nothing does."""
    parts = _MARKER.split(answer)
    return parts[-1] if parts[-1].strip(" .*\n") else answer


def numbers_in(text: str) -> list[Fraction]:
    """Return the decimal numbers in ``text``, exactly, thousands separators allowed."""
    return [Fraction(found.replace(",", "").replace("−", "-")) for found in _NUMBER.findall(text)]


def check_number(answer: str, expected: Fraction | int) -> Graded:
    """Grade the final number: the first after the last 'Answer:', else the last in the text."""
    part = after_marker(answer)
    numbers = numbers_in(part)
    if not numbers:
        return malformed(f"no number in {shown(part)}")
    found = numbers[-1] if part == answer else numbers[0]
    return RIGHT if found == expected else wrong(f"{shown(part)}, expected {expected}")


def plain(text: str) -> str:
    """Return ``text`` in lower case, without accents, marks of emphasis and doubled blanks."""
    letters = unicodedata.normalize("NFKD", text).replace("’", "'")
    kept = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[*_`\"]", "", kept).lower().split())


def names_in(text: str, names: Iterable[str]) -> list[str]:
    """Return the names that ``text`` holds as whole words, in order; the longest wins where two overlap."""
    originals = {plain(name): name for name in names}
    longest_first = sorted(originals, key=len, reverse=True)
    pattern = "|".join(re.escape(name) for name in longest_first)
    return [originals[found] for found in re.findall(rf"(?<!\w)(?:{pattern})(?![\w+#])", plain(text))]


def check_choice(answer: str, expected: str, others: Iterable[str]) -> Graded:
    """Grade an answer that must name exactly one of several choices after its last 'Answer:'."""
    part = after_marker(answer)
    named = set(names_in(part, (expected, *others)))
    if not named:
        return malformed(f"none of the choices in {shown(part)}")
    if len(named) > 1:
        return malformed(f"several of the choices in {shown(part)}")
    return RIGHT if named == {expected} else wrong(f"{shown(part)}, expected {expected}")


def check_name(answer: str, expected: str) -> Graded:
    """Grade an answer that must hold a name."""
    return RIGHT if names_in(answer, (expected,)) else wrong(f"{shown(answer)}, expected {expected}")
