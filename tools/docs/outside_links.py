"""Hook of the documentation site: files of the repository that pages link to become a part of the site.

Pages link to records, suites and READMEs beside `docs/`. Each such file joins the site as `repository/PATH`,
a folder with all its files, and the links follow. Markdown among them becomes a page, whose own links are
treated the same way.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FOLDER = "repository"
"""Where files from outside `docs/` are on the site."""

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"

_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file that pages link to outside `docs/`, and those that these link to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        for path in _outside(page):
            for file in _files(path):
                uri = _uri(file)
                if uri not in files.src_uris:
                    files.append(File.generated(config, uri, abs_src_path=str(ROOT / file)))
                    if uri.endswith(".md"):
                        waiting.append(uri)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn the links of a page that lead out of `docs/` to what `on_files` has added."""

    def turned(match: re.Match[str]) -> str:
        path = _target(page.file.src_uri, match[2])
        if path is None:
            return match[0]
        if (ROOT / path).is_dir():
            path = _files(path)[0]
        return f"{match[1]}{posixpath.relpath(_uri(path), posixpath.dirname(page.file.src_uri))}{match[3]}"

    return _LINK.sub(turned, markdown)


def _outside(page: str) -> Iterator[str]:
    """Yield what a page links to outside `docs/`, as paths from the repository's root."""
    for match in _LINK.finditer((ROOT / _source(page)).read_text(encoding="utf-8")):
        path = _target(page, match[2])
        if path is not None and not path.startswith(f"{DOCS}/"):
            yield path


def _target(page: str, link: str) -> str | None:
    """Return the file or folder that a link means, from the repository's root, None for what is none."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_source(page)), link))
    if path.startswith("..") or not (ROOT / path).exists():
        return None
    return path


def _source(uri: str) -> str:
    """Where the page of a URI is in the repository."""
    return uri.removeprefix(f"{FOLDER}/") if uri.startswith(f"{FOLDER}/") else f"{DOCS}/{uri}"


def _uri(path: str) -> str:
    """Where a file of the repository is on the site."""
    return path.removeprefix(f"{DOCS}/") if path.startswith(f"{DOCS}/") else f"{FOLDER}/{path}"


def _files(path: str) -> list[str]:
    """Return a file itself, or the files in a folder."""
    if (ROOT / path).is_file():
        return [path]
    return sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / path).iterdir() if file.is_file())
