"""Policy text to rules: one pass from left to right, the first thing that does not fit is the error.

    policy   = preset | type | rule *("," rule)        blanks and comments may surround each of these
    rule     = selector ":" types
    selector = "*" | "rest" | N | N "-" [N] | "kv" N | "kv" N "-" ["kv" N]
             | ["kv"] "first" N | "last" N ["-" "last" N] | "kvlast" N ["-" "kvlast" N]
    types    = type | side ["/" side]                  each side at most once
    side     = ("k" | "v") "=" type
    N        = 1*digit                                 at most 65535; leading zeros are allowed
    type     = 1*(letter | digit | "_" | "-")          a known type; "-" only where a known name has one

Blanks are spaces, tabs and line breaks; a comment goes from "#" to the end of its line. Letters are ASCII and
may be of either case. What a text means beyond its spelling (no layer named twice) is checked once the whole
text has been read, so a spelling error is always reported first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NoReturn

from kvquant.errors import FormatError, PolicyError
from kvquant.formats.registry import CACHE_TYPES, format_names, get_format, not_in_llama
from kvquant.policy.messages import character, place, pointed, unknown
from kvquant.policy.rules import MAX_INDEX, Counting, Rule, first_overlap, overlap_message

NAMED = {
    "hybrid": "0-10:q8_0,11-31:q4_0",
    "k8v4": "*:k=q8_0/v=q4_0",
}
"""Preset name to policy text, apart from the one preset per type."""

ABOUT = {
    "f16": "what the others are compared with",
    "q8_0": "half the bytes; within the noise of float16 on some models, above it on others",
    "k8v4": "the first to try below q8_0: keys keep their bits",
    "hybrid": "often copied; on real models k8v4 is better at about the same bytes",
    "q4_0": "a matter of the model: from usable to broken, measure before serving",
}
"""Presets to choose among, and what the records of real models say of them (eval/results/real)."""

_BLANKS = " \t\r\n"
_DIGITS = "0123456789"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NAME = _LETTERS + _DIGITS + "_"
_SELECTORS = ("kv", "first", "last", "rest")
_END = "\0"  # no rule of the grammar takes it
# str.lower() would also fold letters outside ASCII (the Kelvin sign becomes k) and may change the length.
_ASCII_LOWER = {ord(letter.upper()): letter for letter in _LETTERS}


class TypeNames:
    """Known type names, in lower case. Without a list of names it knows all formats, families included.

    characters: what a name may consist of. ``list(names)`` gives the ones to show; variants of a family,
    such as tq_mse_4b-nc, are known but not listed.
    """

    def __init__(self, names: Collection[str] | None) -> None:
        self._names = names
        self.characters = _NAME if names is not None else _NAME + "-"

    def __contains__(self, name: str) -> bool:
        if self._names is not None:
            return name in self._names
        try:
            get_format(name)
        except FormatError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(format_names() if self._names is None else self._names)


def preset_text(name: str, types: Collection[str] | None = None) -> str | None:
    """The policy text behind a preset name (any case), None when there is no such preset."""
    return _preset_text(name.translate(_ASCII_LOWER), TypeNames(types))


def _preset_text(folded: str, types: TypeNames) -> str | None:
    if folded in NAMED:
        return NAMED[folded]
    return f"*:{folded}" if folded in types else None


def parse_rules(text: str, types: TypeNames, where: str) -> tuple[Rule, ...]:
    """Read a policy or a preset's name as rules in the order of the text. Raises as `parse_policy` says."""
    return _Reader(text, types, where).policy()


class _Reader:
    """A position in the text; every method reads one construct of the grammar and moves past it."""

    def __init__(self, text: str, types: TypeNames, where: str) -> None:
        self._text = text
        self._folded = text.translate(_ASCII_LOWER)
        self._types = types
        self._where = where
        self._at = 0

    def policy(self) -> tuple[Rule, ...]:
        self._skip_blanks()
        if self._at == len(self._text):
            self._fail("empty", 0, "there is no rule, write one such as *:q8_0")
        preset = self._preset()
        return self._rules() if preset is None else parse_rules(preset, self._types, self._where)

    def _rules(self) -> tuple[Rule, ...]:
        rules: list[Rule] = []
        starts: list[int] = []
        while True:
            self._skip_blanks()
            starts.append(self._at)
            rules.append(self._rule())
            self._skip_blanks()
            if self._at == len(self._text):
                break
            self._expect(",", "',' and another rule, or the end")
        clash = first_overlap(rules)
        if clash is not None:
            self._fail("overlap", starts[clash], overlap_message(rules, clash))
        return tuple(rules)

    def _preset(self) -> str | None:
        """What a text of a single word stands for; None, without moving, for any other text."""
        start = self._at
        if self._next() not in _LETTERS or any(self._sees(word) for word in _SELECTORS):
            return None
        name = self._name()
        self._skip_blanks()
        if self._at < len(self._text):
            self._at = start
            return None
        preset = _preset_text(name, self._types)
        if preset is None:
            self._fail("preset", start, self._problem("preset", name, [*NAMED, *self._types]))
        return preset

    def _rule(self) -> Rule:
        counting, first, last = self._selector()
        self._expect(":", "':' and a type")
        k_type, v_type = self._sides()
        return Rule(counting, first, last, k_type, v_type)

    def _selector(self) -> tuple[Counting, int, int | None]:
        if self._take("*"):
            return Counting.LAYERS, 0, None
        if self._take("rest"):
            return Counting.REST, 0, None
        cached = self._take("kv")
        counting = Counting.CACHED if cached else Counting.LAYERS
        if self._take("first"):
            return counting, 0, self._number("a number", least=1) - 1
        if self._take("last"):
            return self._from_the_end(Counting.LAST_CACHED if cached else Counting.LAST)
        if cached:
            first = self._number("a number, 'first' or 'last'", hint=self._selector_hint("kv"))
        else:
            first = self._number("layers (0-10, 20-, last2, kv0, rest or *)", hint=self._selector_hint(""))
        if not self._take("-"):
            return counting, first, first
        if not (self._take("kv") if cached else self._next() in _DIGITS):
            return counting, first, None
        end_at = self._at
        last = self._number("a number")
        if last < first:
            self._fail("range", end_at, f"the range ends at {last}, before its start {first}")
        return counting, first, last

    def _from_the_end(self, counting: Counting) -> tuple[Counting, int, int]:
        prefix = counting.value
        far = self._number("a number", least=1)
        if not self._take("-"):
            return counting, 1, far
        self._expect(prefix, f"'{prefix}' and a number")
        end_at = self._at
        near = self._number("a number", least=1)
        if near > far:
            message = f"the range ends at {prefix}{near}, before its start {prefix}{far}"
            self._fail("range", end_at, message)
        return counting, near, far

    def _selector_hint(self, prefix: str) -> str | None:
        """What to write instead of what stands here, where layers should be named."""
        if self._next() == "-":
            return f"the last two layers are {prefix}last2"
        if prefix:
            return None
        start = self._at
        name = self._name()
        self._at = start
        if name and _preset_text(name, self._types) is not None:
            return f"{name} stands alone or behind layers, as in rest:q8_0"
        return None

    def _number(self, wanted: str, *, least: int = 0, hint: str | None = None) -> int:
        start = self._at
        self._skip(_DIGITS)
        if self._at == start:
            self._fail_syntax(wanted, hint)
        # Stripping first keeps int() away from digit strings of any length.
        significant = self._text[start : self._at].lstrip("0") or "0"
        if len(significant) > len(str(MAX_INDEX)) or int(significant) > MAX_INDEX:
            self._fail("number", start, f"the number is too large, the limit is {MAX_INDEX}")
        if int(significant) < least:
            self._fail("number", start, "a number of layers is at least 1")
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
        name = self._name()
        if not name:
            self._fail_syntax("a type")
        if name not in self._types:
            self._fail("type", start, self._problem("type", name, self._types))
        return name

    def _problem(self, what: str, name: str, known: Iterable[str]) -> str:
        """Say what is wrong with an unknown name; a type of kvquant's, where only llama.cpp's will do, is no
        spelling mistake.
        """
        if name in format_names() and name not in CACHE_TYPES:
            return f"{not_in_llama([name])}; it can be analysed but not run"
        return unknown(what, name, known)

    def _name(self) -> str:
        start = self._at
        self._skip(self._types.characters)
        return self._folded[start : self._at]

    def _next(self) -> str:
        """The next character with ASCII letters in lower case; a character no rule takes at the end."""
        return self._folded[self._at] if self._at < len(self._folded) else _END

    def _skip(self, characters: str) -> None:
        while self._next() in characters:
            self._at += 1

    def _skip_blanks(self) -> None:
        self._skip(_BLANKS)
        while self._next() == "#":
            end = self._text.find("\n", self._at)
            self._at = len(self._text) if end < 0 else end
            self._skip(_BLANKS)

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

    def _fail_syntax(self, wanted: str, hint: str | None = None) -> NoReturn:
        found = character(self._text[self._at], hint) if self._at < len(self._text) else "the end"
        self._fail("syntax", self._at, f"expected {wanted}, found {found}")

    def _fail(self, code: str, at: int, message: str) -> NoReturn:
        line, column = place(self._text, at)
        where = f"{self._where}, " + (f"line {line}, " if "\n" in self._text else "")
        raise PolicyError(
            f"{where}column {column}: {message}\n{pointed(self._text, at)}",
            code=code,
            column=column,
            line=line,
        )
