"""Text, figures and page: complete, well formed, self-contained."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from analysis.strategies import HYBRID, SMALL
from kvquant.analysis import Analysis, MeanErrors, Sampling, Summary, analyze
from kvquant.errors import KVQuantError
from kvquant.memory.document import DefaultTypes
from kvquant.report.analysis import analysis_page, analysis_text, command_line, write_page
from kvquant.report.analysis_figures import front_svg, layers_svg, pareto_front, write_plot
from kvquant.report.drawing import DARK, LIGHT, SERIES, FigureSize, Palette, css_variables
from report.page_checks import check_page_stands_alone, text_of

MEASURES = [entry.name for entry in fields(MeanErrors) if entry.init]


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze("0:q8_0,1-:q4_0", shape=SMALL, sampling=Sampling(32, 4))


@pytest.fixture(scope="module")
def page(analysis: Analysis) -> str:
    return analysis_page(analysis)


def test_page_stands_alone(page: str) -> None:
    check_page_stands_alone(page)


@pytest.mark.parametrize(
    "broken",
    [
        lambda page: page.replace("</main>", ""),
        lambda page: page.replace("</main>", '<img src="https://example.org/x.png"></main>'),
        lambda page: page.replace("</main>", "<script>1</script></main>"),
        lambda page: page.replace("</main>", '<p id="a"></p><p id="a"></p></main>'),
        lambda page: page.replace("<style>", "<style>body { background: url(x.png) }"),
    ],
)
def test_the_page_check_notices_what_does_not_stand_alone(page: str, broken: Callable[[str], str]) -> None:
    with pytest.raises(AssertionError):
        check_page_stands_alone(broken(page))


def test_page_tells_the_whole_story(analysis: Analysis, page: str) -> None:
    text = text_of(page)
    for part in analysis.verdict.rstrip(".").split("; "):
        assert part[1:] in text
    for name in analysis.baselines:
        assert name in text
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page and 'lang="en"' in page
    assert page.count('role="img" aria-label="') == 2
    assert text.count("Show the 4 layers") == 1
    assert command_line(analysis) in text


def test_page_colours_come_from_variables_only(analysis: Analysis) -> None:
    """Every colour in the figures follows the theme; black and white would not."""
    for svg in (layers_svg(analysis, FigureSize(10, 5), "a"), front_svg(analysis, FigureSize(4, 4), "b")):
        assert not re.search(r"#[0-9a-fA-F]{6}\b", re.sub(r'(href="|url\()#[^")]*', "", svg))
        used = set(re.findall(r"var\(--(\w+)\)", svg))
        assert used and used <= set(Palette.__dataclass_fields__)
        ET.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))


def test_both_themes_define_every_variable() -> None:
    for palette in (LIGHT, DARK):
        assert set(re.findall(r"--(\w+): #[0-9a-f]{6};", css_variables(palette))) == set(
            Palette.__dataclass_fields__
        )


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_text_and_marks_stand_out_from_the_background(palette: Palette) -> None:
    """WCAG contrast: 4.5 for text (the policy and its rivals are named in colour), 1.8 for filled areas."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(color: str) -> float:
        high, low = sorted((luminance(color), luminance(palette.background)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    written = ("text", "policy", "rival", "good", "caution", "bad", *SERIES)
    assert min(contrast(getattr(palette, role)) for role in written) >= 4.5
    assert len({getattr(palette, role) for role in SERIES}) == len(SERIES)
    assert min(contrast(palette.k), contrast(palette.v)) >= 1.8


def test_names_cannot_break_out_of_the_page(analysis: Analysis) -> None:
    hostile = replace(
        analysis, model='<script>"&', source=replace(analysis.source, name="<b>.npz", description="$x$")
    )
    page = analysis_page(hostile)
    check_page_stands_alone(page)
    assert "&lt;script&gt;&quot;&amp;" in page and "<b>" not in page


def test_edge_cases_can_be_drawn(analysis: Analysis, tmp_path: Path) -> None:
    """No error at all, unknown errors, no baselines, layers of several widths, a name of formula signs."""
    unknown = replace(
        analysis.total,
        **dict.fromkeys(MEASURES),
        layer_attn_output_rel_error=(None,) * 4,
        runnable=False,
        unrotated=None,
    )
    cases = {
        "exact": analyze("f32", shape=SMALL, sampling=Sampling(16, 2)),
        "alone": replace(analysis, baselines={}, policy="0:f16," * 40, model="$\\frac{a}$"),
        "hybrid": analyze("kv0:q8_0,kv1:q4_0", shape=HYBRID, sampling=Sampling(16, 2)),
        "nothing known": replace(analysis, total=unknown, baselines={}),
    }
    for name, case in cases.items():
        check_page_stands_alone(analysis_page(case))
        assert analysis_text(case), name
    write_plot(cases["nothing known"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_analysis_gives_the_same_file(analysis: Analysis, page: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_plot(analysis, tmp_path / f"{name}.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert analysis_page(analysis) == page


def test_a_failed_write_leaves_nothing(analysis: Analysis, tmp_path: Path) -> None:
    for write in (write_page, write_plot):
        with pytest.raises(KVQuantError, match="cannot write"):
            write(analysis, tmp_path / "no" / "such.svg")
    assert list(tmp_path.iterdir()) == []


def test_the_front_is_what_nothing_beats() -> None:
    def point(size: float, error: float | None, runnable: bool = True) -> Summary:
        return Summary(
            **{**dict.fromkeys(MEASURES), "attn_output_rel_error": error},
            policy="",
            runnable=runnable,
            kv_bytes=round(1000 * size),
            kv_bytes_f16=1000,
            unrotated=None,
            layer_attn_output_rel_error=(),
            layer_bytes=(),
        )

    points = [point(1, 0.01), point(0.5, 0.1), point(0.6, 0.2), point(0.3, 0.3), point(0.2, None)]
    assert pareto_front([*points, point(0.1, 0.1, runnable=False)]) == [(0.3, 0.3), (0.5, 0.1), (1, 0.01)]
    assert pareto_front([]) == []


def test_the_command_repeats_the_analysis(analysis: Analysis) -> None:
    assert command_line(analysis) == (
        "kvquant analyze --policy 0:q8_0,1-:q4_0 --ctx 4096 --profile typical --seed 0 --rotation both"
    )
    source = replace(analysis.source, kind="capture", seed=None, name="a b.npz")
    odd = replace(
        analysis, policy="*:k=q8_0", default=DefaultTypes("f16", "q4_0"), rotation="on", source=source
    )
    assert command_line(odd) == (
        "kvquant analyze --policy '*:k=q8_0' --ctx 4096 --default k=f16/v=q4_0 --capture 'a b.npz' "
        "--rotation on"
    )


def test_text_is_aligned(analysis: Analysis) -> None:
    lines = analysis_text(analysis).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layer"))
    table = lines[start : start + 5]
    assert len({len(line) for line in table}) == 1
    assert max(map(len, lines[:-1])) <= 112


def test_matplotlib_is_loaded_by_figures_only() -> None:
    program = (
        "import sys\n"
        "from kvquant.analysis import analyze\n"
        "import kvquant.report.analysis, kvquant.cli.analyze\n"
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
