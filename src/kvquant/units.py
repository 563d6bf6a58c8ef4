"""Numbers as people write and read them: bytes, tokens, budgets. A unit only changes the spelling."""

from __future__ import annotations

import re

from kvquant.errors import UsageError

_BINARY = {"k": 1024, "m": 1024**2, "g": 1024**3}
"""What people mean by 32k tokens and by 4G of memory, with or without the i that says so."""

_BYTES = {
    "": 1,
    "b": 1,
    **_BINARY,
    **{f"{letter}ib": factor for letter, factor in _BINARY.items()},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmg", 1)},
}
_TOKENS = {"": 1, "k": 1024, "m": 1024**2}
_NUMBER = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})\s*([a-z%]*)", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[0-9]+,[0-9]{1,2}\s*[a-z%]*", re.ASCII)
_THOUSANDS = re.compile(r"[0-9]{1,3}([,_ '][0-9]{3})+\s*[a-z]*", re.ASCII)


def parse_n_bytes(text: str) -> int:
    """Return the number of bytes that ``text`` names, such as ``256MiB``, ``4G`` (GiB), ``4GB`` or ``1024``.

    A fraction of a unit is rounded down to whole bytes. Raises UsageError for anything else, a fraction
    without a unit included.
    """
    number = _NUMBER.fullmatch(text.strip().lower())
    if number is None or number[2] not in _BYTES:
        instead = _instead(text) or "write a number with MiB or GiB (M and G are the same), MB or GB"
        raise UsageError(f"{text!r} is not a byte count; {instead}")
    if not number[2] and "." in number[1]:
        raise UsageError(f"{text!r} has no unit: {_shown(number)}GiB and {_shown(number)}MiB have one")
    return _times(number[1], _BYTES[number[2]])[0]


def parse_n_tokens(text: str) -> int:
    """Return the number of tokens that ``text`` names: ``4096``, ``32k`` (32 x 1024), ``1M`` (1024 x 1024).

    Raises UsageError for anything else.
    """
    number = _NUMBER.fullmatch(text.strip().lower())
    if number is None or number[2] not in _TOKENS:
        raise UsageError(f"{text!r} is not a number of tokens; {_instead(text) or 'write 4096 or 4k'}")
    n_tokens, left = _times(number[1], _TOKENS[number[2]])
    if left:
        raise UsageError(f"{text!r} is not a whole number of tokens; write 4096 or 4k")
    return n_tokens


def parse_budget(text: str) -> int | float:
    """Return a budget: bytes as an int, or a share of what f16 takes (``0.35x``, ``35%``) as a float.

    Raises UsageError for anything else: a number that is 0, or that has a fraction but no unit, included.
    """
    number = _NUMBER.fullmatch(text.strip().lower())
    if number is not None and number[2] in ("x", "%"):
        share = float(number[1]) / (100 if number[2] == "%" else 1)
        if share <= 0:
            raise UsageError(f"{text!r} leaves nothing; a share of f16 is more than 0, such as 0.35x")
        return share
    if number is not None and not number[2] and "." in number[1]:
        raise UsageError(
            f"{text!r} has no unit: {_shown(number)}x is a share of f16, {_shown(number)}GiB a size"
        )
    try:
        n_bytes = parse_n_bytes(text)
    except UsageError as error:
        raise UsageError(f"{error}; or a share of f16 such as 0.35x") from None
    if n_bytes <= 0:
        raise UsageError(
            f"{text!r} leaves nothing; write a size such as 256MiB, or a share of f16 such as 0.35x"
        )
    return n_bytes


def format_n_bytes(n_bytes: int) -> str:
    """Return ``n_bytes`` for people, two decimals in the largest binary unit that keeps it at least 1."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.2f} {unit}"
    return f"{n_bytes} B"


def _times(number: str, factor: int) -> tuple[int, int]:
    """A decimal number times a factor: the whole part, and what is left, 0 where nothing is.

    In integers: a float would lose bytes above 2**53.
    """
    whole, _, fraction = number.partition(".")
    scale: int = 10 ** len(fraction)
    return divmod(int(whole + fraction) * factor, scale)


def _shown(number: re.Match[str]) -> str:
    return f"0{number[1]}" if number[1].startswith(".") else number[1]


def _instead(text: str) -> str | None:
    """What was probably meant by a number that cannot be read."""
    word = text.strip()
    if _THOUSANDS.fullmatch(word.lower()):
        return f"leave out the separators: {re.sub('[^0-9a-zA-Z]', '', word)}"
    return f"write {word.replace(',', '.')}" if _DECIMAL_COMMA.fullmatch(word.lower()) else None
