"""What every page must be, as functions that raise, so that broken pages can be tried too."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


class Balanced(HTMLParser):
    """Collects ids, link targets and text, and insists that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def text_of(page: str) -> str:
    """The text a page shows."""
    parser = Balanced()
    parser.feed(page)
    return " ".join(parser.text)


def check_page_stands_alone(page: str) -> None:
    """Well formed, unique ids, every link inside the page, no script and nothing fetched."""
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids)), "ids repeat"
    targets = parser.links + re.findall(r"url\(([^)]*)\)", page)
    for target in targets:
        assert target.startswith("#") and target[1:] in parser.ids, f"{target} leads out of the page"
    assert "<script" not in page and "@import" not in page
