"""Which type names a policy may use: those of a given reader, or every format of the package."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kvquant.errors import FormatError
from kvquant.formats.registry import format_names, get_format

_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789_"


class TypeNames:
    """Known type names, in lower case. Without a list of names it knows all formats, families included.

    characters: what a name may consist of. ``list(names)`` gives the ones to show; variants of a family,
    such as tq_mse_4b-nc, are known but not listed.
    """

    def __init__(self, names: Collection[str] | None) -> None:
        self._names = names
        self.characters = _CHARACTERS if names is not None else _CHARACTERS + "-"

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
