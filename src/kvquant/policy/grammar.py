"""Policy text to ``Policy``: one pass from left to right, the first thing that does not fit is the error.

    policy   = rule *("," rule)
    rule     = selector ":" types                      blanks (space, tab) may surround a rule
    selector = "*" | N | N "-" [N] | "kv" N | "kv" N "-" ["kv" N]
    types    = type | side ["/" side]                  each side at most once
    side     = ("k" | "v") "=" type
    N        = 1*digit                                 at most 65535; leading zeros are allowed
    type     = 1*(letter | digit | "_" | "-")          a known type; "-" only where a known name has one

Letters are ASCII and may be of either case. What a text means beyond its spelling (no layer named twice) is
checked once the whole text has been read, so a spelling error is always reported first.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

from kvquant.errors import PolicyError
from kvquant.policy.messages import pointed, shown, unknown
from kvquant.policy.rules import MAX_INDEX, Counting, Policy, Rule, first_overlap, overlap_message
from kvquant.policy.types import TypeNames

_BLANKS = " \t"
_DIGITS = "0123456789"
_END = "\n"
# str.lower() would also fold letters outside ASCII (the Kelvin sign becomes k) and may change the length.
_ASCII_LOWER = {ord(upper): upper.lower() for upper in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def parse_policy(text: str, types: Collection[str] | None = None) -> Policy:
    """Read a policy, knowing the type names ``types`` (None: every format of the package).

    Raises PolicyError with ``code`` "empty", "syntax", "number", "type", "range" or "overlap" and the 1-based
    ``column`` of the character at fault (one past the end when the text stops too early).
    """
    return _Reader(text, TypeNames(types)).policy()


class _Reader:
    """A position in the text; every method reads one construct of the grammar and moves past it."""

    def __init__(self, text: str, types: TypeNames) -> None:
        self._text = text
        self._folded = text.translate(_ASCII_LOWER)
        self._types = types
        self._at = 0

    def policy(self) -> Policy:
        self._skip(_BLANKS)
        if self._at == len(self._text):
            self._fail("empty", 0, "there is no rule, write one such as *:q8_0")
        rules: list[Rule] = []
        starts: list[int] = []
        while True:
            self._skip(_BLANKS)
            starts.append(self._at)
            rules.append(self._rule())
            self._skip(_BLANKS)
            if self._at == len(self._text):
                break
            self._expect(",", "',' and another rule, or the end")
        clash = first_overlap(rules)
        if clash is not None:
            self._fail("overlap", starts[clash], f"{overlap_message(rules, clash)}; name each layer once")
        return Policy(tuple(rules))

    def _rule(self) -> Rule:
        counting, first, last = self._selector()
        self._expect(":", "':' and a type")
        k_type, v_type = self._sides()
        return Rule(counting, first, last, k_type, v_type)

    def _selector(self) -> tuple[Counting, int, int | None]:
        if self._take("*"):
            return Counting.LAYERS, 0, None
        counting = Counting.CACHED if self._take("kv") else Counting.LAYERS
        first = self._number("a number" if counting is Counting.CACHED else "layers (0-10, 20-, kv0 or *)")
        if not self._take("-"):
            return counting, first, first
        closed = self._take("kv") if counting is Counting.CACHED else self._next() in _DIGITS
        if not closed:
            return counting, first, None
        end_at = self._at
        last = self._number("a number")
        if last < first:
            self._fail("range", end_at, f"the range ends at {last}, before its start {first}")
        return counting, first, last

    def _number(self, wanted: str) -> int:
        start = self._at
        self._skip(_DIGITS)
        if self._at == start:
            self._fail_syntax(wanted)
        # Stripping first keeps int() away from digit strings of any length.
        significant = self._text[start : self._at].lstrip("0") or "0"
        if len(significant) > len(str(MAX_INDEX)) or int(significant) > MAX_INDEX:
            self._fail("number", start, f"the number is too large, the limit is {MAX_INDEX}")
        return int(significant)

    def _sides(self) -> tuple[str | None, str | None]:
        given: dict[str, str] = {}
        while (side := self._side()) is not None and side not in given:
            self._at += len("k=")
            given[side] = self._type()
            if len(given) == 2 or not self._take("/"):
                return given.get("k"), given.get("v")
        if given:
            other = "v" if "k" in given else "k"
            self._fail_syntax(f"'{other}=' and a type")
        name = self._type()
        return name, name

    def _side(self) -> str | None:
        """The side that "k=" or "v=" at this place announces, without moving."""
        return next((side for side in ("k", "v") if self._sees(f"{side}=")), None)

    def _type(self) -> str:
        start = self._at
        self._skip(self._types.characters)
        name = self._folded[start : self._at]
        if not name:
            self._fail_syntax("a type")
        if name not in self._types:
            self._fail("type", start, unknown("type", name, self._types))
        return name

    def _next(self) -> str:
        """The next character with ASCII letters in lower case; a character no rule takes at the end."""
        return self._folded[self._at] if self._at < len(self._folded) else _END

    def _skip(self, characters: str) -> None:
        while self._next() in characters:
            self._at += 1

    def _sees(self, word: str) -> bool:
        return self._folded.startswith(word, self._at)

    def _take(self, word: str) -> bool:
        if not self._sees(word):
            return False
        self._at += len(word)
        return True

    def _expect(self, word: str, wanted: str) -> None:
        if not self._take(word):
            self._fail_syntax(wanted)

    def _fail_syntax(self, wanted: str) -> NoReturn:
        found = shown(self._text[self._at]) if self._at < len(self._text) else "the end"
        self._fail("syntax", self._at, f"expected {wanted}, found {found}")

    def _fail(self, code: str, at: int, message: str) -> NoReturn:
        column = at + 1
        raise PolicyError(
            f"policy, column {column}: {message}\n{pointed(self._text, column)}", code=code, column=column
        )
