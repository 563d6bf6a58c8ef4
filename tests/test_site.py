"""The documentation site: built strictly, whole, and shown without another server, on a phone too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import kvquant
from get_chromium import find_chromium
from kvquant.schemas import schema_names
from pages.typed import typed_lines
from report.browser import Browser

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CONFIG = ROOT / "tools/docs/mkdocs.yml"
PHONE = 390


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make site` builds it; a warning of any kind fails the build."""
    built = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", str(CONFIG), "--site-dir", str(built)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return built


class Loaded(HTMLParser):
    """The addresses that a page loads by itself, rather than links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        name = "href" if tag == "link" else "src"
        if tag in {"link", "script", "img", "iframe", "source", "video"} and given.get("rel") != "canonical":
            self.found.append(given.get(name) or "")


def elsewhere(page: str) -> list[str]:
    """Return what a page would load from another server."""
    parser = Loaded()
    parser.feed(page)
    return [address for address in parser.found if re.match(r"(https?:)?//", address)]


def test_nothing_is_loaded_from_another_server(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    assert {page.name: found for page in pages if (found := elsewhere(page.read_text()))} == {}
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_the_check_sees_a_foreign_font() -> None:
    assert elsewhere('<link rel="stylesheet" href="https://fonts.example/a.css">') != []
    assert elsewhere('<script src="//cdn.example/a.js"></script>') != []
    assert elsewhere('<a href="https://example.org">see</a><script src="a.js"></script>') == []


def test_every_page_is_in_the_navigation() -> None:
    text = CONFIG.read_text()
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert {page for page in pages if f": {page}\n" not in text} == set()


def test_links_to_records_lead_to_them(site: Path) -> None:
    """What pages link to outside docs/ is on the site, the folders of it with every file."""
    assert (site / "repository/eval/results/real/index.html").is_file()
    records = {path.name for path in (ROOT / "benchmarks/results/transform").iterdir()}
    assert records <= {path.name for path in (site / "repository/benchmarks/results/transform").iterdir()}
    page = (site / "claims.html").read_text()
    assert 'href="repository/eval/results/real/index.html"' in page
    assert "../eval/" not in page


def test_the_api_page_has_every_public_name(site: Path) -> None:
    page = (site / "api.html").read_text()
    documented = set(re.findall(r'<h3 id="kvquant[\w.]*?(\w+)"', page))
    assert documented == set(kvquant.__all__)


def test_the_schemas_are_listed() -> None:
    listed = re.findall(r"^\| (`[^|]*`) \|", (DOCS / "json.md").read_text(), re.MULTILINE)
    assert sorted(re.findall(r"[\w-]+", " ".join(listed))) == list(schema_names())


def test_the_gallery_has_every_figure_with_a_command() -> None:
    sections = (DOCS / "gallery.md").read_text().split("\n## ")[1:]
    shown = [re.findall(r"\]\(figures/([\w-]+\.svg)\)", section) for section in sections]
    assert sorted(name for names in shown for name in names) == sorted(
        path.name for path in (DOCS / "figures").iterdir()
    )
    for section, names in zip(sections, shown, strict=True):
        if names:
            assert typed_lines(section), section


def test_figures_have_text_for_light_and_dark() -> None:
    for figure in (DOCS / "figures").iterdir():
        assert "prefers-color-scheme: dark" in figure.read_text(), figure.name


# ---- in a browser ----

in_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium; tools/get_chromium.py gets one")
COLOURS = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
FIGURES = "[...document.querySelectorAll('article img')].map(image => image.naturalWidth > 0)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    assert program is not None
    with Browser(program) as running:
        yield running


@in_browser
@pytest.mark.parametrize("page", ["index", "tutorial", "how-to/ram-limit", "cli", "api", "claims", "gallery"])
def test_a_page_on_a_phone_in_both_schemes(browser: Browser, site: Path, page: str) -> None:
    colours = []
    for dark in (False, True):
        shown = browser.show(site / f"{page}.html", PHONE, dark)
        assert [url for url in shown.requests if not url.startswith(("file:", "data:"))] == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE, "wider than the screen"
        assert all(browser.evaluate(FIGURES))
        colours.append(browser.evaluate(COLOURS))
    assert colours[0] != colours[1], "the scheme makes no difference"


def test_site_settings_name_no_foreign_address() -> None:
    settings = yaml.load(CONFIG.read_text(), yaml.BaseLoader)
    assert settings["theme"]["font"] == "false"
    assert "http" not in CONFIG.read_text()
