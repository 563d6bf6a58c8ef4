"""What the readers of several notations share."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvquant.errors import PolicyError
from kvquant.formats.registry import CACHE_TYPES
from kvquant.policy.policy import Policy, ResolvedPolicy


@dataclass(frozen=True)
class Imported:
    """A policy, the notation it was read from, and what of it a policy does not say."""

    policy: Policy
    notation: str
    notes: tuple[str, ...] = ()


def refused(message: str, code: str = "notation") -> PolicyError:
    """Return the error for what cannot be read or written, "type" where a type has no counterpart."""
    return PolicyError(message, code=code)


def options(text: str) -> Iterator[tuple[str, str]]:
    """Every option of a command line with the word behind it, "" for none."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise refused(f"the command line does not end: {error}") from None
    for index, word in enumerate(words):
        if not word.startswith("-") or re.fullmatch(r"-[0-9.]+", word):
            continue
        flag, equals, value = word.partition("=")
        following = words[index + 1] if index + 1 < len(words) else ""
        yield (flag, value) if equals else (word, following)


def cache_type(name: str, place: str) -> str:
    """Return llama.cpp's cache type of that name. Raises PolicyError, code "type", where it has none."""
    folded = name.lower()
    if folded not in CACHE_TYPES:
        raise refused(
            f"{place}: {name or 'nothing'} is not a cache type of llama.cpp; it has {', '.join(CACHE_TYPES)}",
            code="type",
        )
    return folded


def left(flags: Sequence[str]) -> tuple[str, ...]:
    """Return the note on what is no part of a policy, nothing without any."""
    return (f"left out, because not part of a policy: {', '.join(dict.fromkeys(flags))}",) if flags else ()


def one_pair(resolved: ResolvedPolicy) -> tuple[str, str] | None:
    """Return the K and V type of all layers, None where they differ."""
    pairs = {(layer.k_type, layer.v_type) for layer in resolved.layers}
    return next(iter(pairs)) if len(pairs) == 1 else None


def object_of(text: str, what: str) -> dict[str, Any]:
    """Read a JSON object. Raises PolicyError."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise refused(f"{what}: no JSON: {error}") from None
    if not isinstance(document, dict):
        raise refused(f"{what} is an object, not {type(document).__name__}")
    return document
