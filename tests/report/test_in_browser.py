"""Pages as a real browser shows them: quiet, alone, never wider than the screen, in both schemes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.strategies import SMALL
from get_chromium import find_chromium
from kvquant.analysis import Sampling, analyze
from kvquant.report.analysis import analysis_page
from kvquant.report.drawing import standalone_svg
from kvquant.report.sweep_page import sweep_page
from kvquant.report.validation_figures import quality_svg
from kvquant.report.validation_page import validation_page
from report.browser import Browser
from report.sweep_sample import sweep_sample
from report.validation_sample import LOG, hostile_sample, sample

PROGRAM = find_chromium()
PHONE, SCREEN = 390, 1280

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium; tools/get_chromium.py gets one")

# Figures that take room on the screen, and whether something can be seen in each.
FIGURES = """
[...document.querySelectorAll("figure svg")]
    .map(svg => [svg.getBoundingClientRect(), svg.querySelectorAll("path").length])
    .filter(([box, _]) => box.width > 0)
    .map(([box, paths]) => box.height > 100 && box.right <= innerWidth && paths > 5)
"""
WIDTH = "document.documentElement.scrollWidth"
COLOURS = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
FIGURE_COLOUR = 'getComputedStyle(document.querySelector("figure svg text")).fill'
BROKEN_OUT = "document.querySelectorAll('script, img, iframe, object, embed, link, form').length"


def check_shown(browser: Browser, page: Path, width: int, n_figures: int, dark: bool = False) -> None:
    """No complaint, no request, no sideways scrolling, every figure visible."""
    shown = browser.show(page, width, dark)
    assert not shown.complaints, f"complaints: {shown.complaints}"
    assert not shown.requests, f"requests: {shown.requests}"
    assert browser.evaluate(WIDTH) <= width, "wider than the screen"
    # With everything unfolded, too.
    browser.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.evaluate(WIDTH) <= width, "wider than the screen when unfolded"
    assert browser.evaluate(FIGURES) == [True] * n_figures, "a figure cannot be seen"
    assert browser.evaluate(BROKEN_OUT) == 0, "something acts"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """Each page with the number of its figures."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = hostile_sample()
    texts = {
        "validation": (validation_page(sample(), {LOG: "x" * 500}), 6),
        "hostile": (validation_page(hostile, {}), 6),
        "sweep": (sweep_page(sweep_sample()), 4),
        "analysis": (analysis_page(analyze("0:q8_0,1-:q4_0", shape=SMALL, sampling=Sampling(32, 4))), 2),
    }
    for name, (text, _) in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: (folder / f"{name}.html", n) for name, (_, n) in texts.items()}


@pytest.mark.parametrize("name", ["validation", "hostile", "analysis", "sweep"])
@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_pages_as_they_are_shown(
    browser: Browser, pages: dict[str, tuple[Path, int]], name: str, width: int
) -> None:
    page, n_figures = pages[name]
    check_shown(browser, page, width, n_figures)


@pytest.mark.parametrize("name", ["validation", "analysis", "sweep"])
def test_both_schemes_have_their_colours(
    browser: Browser, pages: dict[str, tuple[Path, int]], name: str
) -> None:
    page, n_figures = pages[name]
    seen = []
    for dark in (False, True):
        check_shown(browser, page, SCREEN, n_figures, dark)
        text, background = browser.evaluate(COLOURS)
        assert browser.evaluate(FIGURE_COLOUR) == text, "figures follow the scheme"
        seen.append((text, background))
    assert seen == [("rgb(28, 36, 48)", "rgb(255, 255, 255)"), ("rgb(232, 236, 241)", "rgb(20, 24, 31)")]


def test_the_figure_alone_follows_the_scheme(browser: Browser, tmp_path: Path) -> None:
    svg = quality_svg(sample(), narrow=False, prefix="x")
    assert svg is not None
    file = tmp_path / "figure.svg"
    file.write_text(standalone_svg(svg))
    seen = []
    for dark in (False, True):
        shown = browser.show(file, SCREEN, dark)
        assert not shown.complaints and not shown.requests
        colours = (
            '[...document.querySelectorAll("rect, text")].slice(0, 2).map(e => getComputedStyle(e).fill)'
        )
        seen.append(tuple(browser.evaluate(colours)))
    assert seen == [("rgb(255, 255, 255)", "rgb(28, 36, 48)"), ("rgb(20, 24, 31)", "rgb(232, 236, 241)")]


@pytest.mark.parametrize(
    ("markup", "what"),
    [
        ('<p style="width: 2000px">wide</p>', "wider than the screen"),
        ('<details><p style="width: 2000px">wide</p></details>', "when unfolded"),
        ("<script>console.log(1)</script>", "complaints"),
        ("<script>throw new Error()</script>", "complaints"),
        ('<p style="background: url(other.png)">x</p>', "requests|complaints"),
        ("<style>figure { display: none }</style>", "a figure cannot be seen"),
        ('<img alt="">', "something acts"),
    ],
)
def test_the_check_sees_broken_pages(
    browser: Browser, pages: dict[str, tuple[Path, int]], tmp_path: Path, markup: str, what: str
) -> None:
    page, n_figures = pages["validation"]
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("</main>", f"{markup}</main>"))
    with pytest.raises(AssertionError, match=what):
        check_shown(browser, broken, SCREEN, n_figures)
