"""Pages with parts that are written from records, each between ``<!-- NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

from collections.abc import Mapping

END = "<!-- end -->"


def filled(page: str, parts: Mapping[str, str]) -> str:
    """Return the page with each part, by name, as it is given.

    Raises ValueError for a part that the page does not have, or has more than once.
    """
    for name, content in parts.items():
        begin = f"<!-- {name} -->"
        if page.count(begin) != 1:
            raise ValueError(f"the page has {begin} {page.count(begin)} times, wanted once")
        head, _, rest = page.partition(begin)
        _, end, tail = rest.partition(END)
        if not end:
            raise ValueError(f"the page has no {END} after {begin}")
        page = f"{head}{begin}\n\n{content}\n\n{END}{tail}"
    return page
