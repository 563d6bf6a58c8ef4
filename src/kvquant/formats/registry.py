"""Format names to formats. Importing `kvquant.formats` fills the table, so nobody sees it half full."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kvquant.errors import FormatError
from kvquant.formats.base import Format

UPSTREAM_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""The types llama.cpp accepts for a KV cache, in the order its help lists them."""

ORDERED_TYPES = ("k5x3", "k4x2")
"""Types for keys whose dimensions a transform has put in the order of what they carry."""

OWN_TYPES = ("tq3", "tq2", *ORDERED_TYPES)
"""The types that the patch series adds, on the CPU."""

CACHE_TYPES = (*UPSTREAM_TYPES, *OWN_TYPES)
"""The types of a KV cache that patched programs run with."""

_CACHE_ENCODERS = {"iq4_nl": "iq4_nl_cache"}

_FORMATS: dict[str, Format] = {}
_FAMILIES: dict[str, Callable[[str], Format]] = {}


def register(new: Format) -> Format:
    """Add a format under its name and return it. Raises FormatError when the name is taken."""
    if new.name in _FORMATS:
        raise FormatError(f"a format named {new.name!r} already exists; choose another name")
    _FORMATS[new.name] = new
    return new


def register_family(prefix: str, parse: Callable[[str], Format]) -> None:
    """Let ``parse`` make the formats whose names start with ``prefix`` and are not listed one by one."""
    _FAMILIES[prefix] = parse


def get_format(name: str) -> Format:
    """Return the format called ``name``. Raises FormatError naming the known ones, or a family's grammar."""
    if name in _FORMATS:
        return _FORMATS[name]
    for prefix, parse in _FAMILIES.items():
        if name.startswith(prefix):
            return parse(name)
    raise FormatError(f"unknown format {name!r}; known: {', '.join(format_names())}")


def cache_format(name: str) -> Format:
    """Return the format in which llama.cpp writes a cache of type ``name``; other names mean themselves.

    That differs for iq4_nl alone, which has one encoder for model files and another for a cache.
    """
    return get_format(_CACHE_ENCODERS.get(name, name))


def not_in_llama(names: Iterable[str]) -> str:
    """Say which of ``names`` are no cache types."""
    return f"llama.cpp has no cache of type {', '.join(name for name in names if name not in CACHE_TYPES)}"


def format_names() -> tuple[str, ...]:
    """Return every registered name, ggml's cache types first."""
    return tuple(_FORMATS)
