"""The report of a validation: it tells everything, hides nothing unknown, and no text breaks out of it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from command_line import run_kvquant
from kvquant.cli.main import kvquant as command
from kvquant.report import validation_figures as figures
from kvquant.report.drawing import SERIES
from kvquant.report.validation_figures import inks, quality_svg
from kvquant.report.validation_page import validation_page
from kvquant.report.validation_tables import verdict_table
from kvquant.report.validation_text import (
    N_LINES,
    headline,
    read_excerpts,
    sure_lines,
    validation_markdown,
    validation_text,
)
from kvquant.results.validation import Failure, ValidationResult, parse_result
from kvquant.tables import escape_markdown
from report.page_checks import check_page_stands_alone, text_of
from report.validation_sample import HOSTILE, HYBRID, LOG, hostile_sample, sample, sample_document

DRAW = [
    quality_svg,
    figures.divergence_svg,
    figures.positions_svg,
    figures.categories_svg,
    figures.speed_svg,
    figures.layers_svg,
]


@pytest.fixture(scope="module")
def result() -> ValidationResult:
    return sample()


@pytest.fixture(scope="module")
def page(result: ValidationResult) -> str:
    return validation_page(result, {LOG: "loading\nGGML_ASSERT(n > 0) failed"})


def test_the_sample_is_a_result_document() -> None:
    assert parse_result(sample_document(), "sample") == sample()


def test_page_stands_alone(page: str) -> None:
    check_page_stands_alone(page)
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page and 'lang="en"' in page


def test_page_tells_the_whole_story(result: ValidationResult, page: str) -> None:
    text = text_of(page)
    assert text.index("Verdicts") < min(
        text.index(word) for word in ("Why", "Memory against quality", "median")
    )
    for policy in result.policies:
        assert policy.label in text and policy.verdict in text
        assert all(reason in text for reason in policy.reasons)
    for part in (
        "1 safe, 1 costs, 1 cannot tell, 1 broken, 1 failed",
        "The smallest safe one is q8_0, with 0.53x the memory",
        "Asked twice, the baseline changed 10 of 200 outcomes (5 lost, 5 gained)",
        "a change of 4.4 points is detected with probability 0.8",
        "GGML_ASSERT(n > 0) failed",
        "slot, a row of layer 3, V: f16 with 256 B",
        "kvquant validate --policy " + HYBRID,
        "ab" * 32,
    ):
        assert part in text, part
    assert page.count('role="img" aria-label="') == len(DRAW)


def test_the_first_table_has_the_numbers(result: ValidationResult) -> None:
    table = verdict_table(result)
    rows = {row[0]: row for row in table.rows}
    row = dict(zip(table.head, rows[HYBRID], strict=True))
    assert row == {
        "policy": HYBRID,
        "verdict": "costs",
        "KV cache": "23.50 MiB",
        "of baseline": "0.37x",
        "right": "67.5 %",
        "change, points": "−12.5 (−17.9 to −8.0)",
        "KL, nats": "0.012 (0.0096 to 0.016)",
        "KL floor": "4.0e-05",
        "same top token": "99.4 %",
        "prefill": "0.36x (depth 4,096)",
        "decode": "0.84x (depth 4,096)",
    }
    assert rows["q4_0"][2:] == ("?",) * 9, "nothing is known of a policy that failed, and nothing is 0"
    assert rows["q5_0"][2:4] == ("?", "?")


def without(result: ValidationResult, *parts: str) -> ValidationResult:
    """The result with parts of every policy gone: not asked for, or not measured yet."""
    empty: dict[str, Any] = {part: None if part in ("memory", "chat") else () for part in parts}
    return replace(result, policies=tuple(replace(policy, **empty) for policy in result.policies))


TOGETHER = (("memory", "tasks"), ("divergence", "chat", "repeat"), ("speed", "reasons", "failures"))
PARTS = tuple(part for parts in TOGETHER for part in parts)


@pytest.mark.parametrize("parts", [PARTS, *TOGETHER], ids="-".join)
def test_what_was_not_measured_leaves_no_hole(result: ValidationResult, parts: tuple[str, ...]) -> None:
    bare = without(result, *parts)
    text = text_of(bare_page := validation_page(bare, {}))
    check_page_stands_alone(bare_page)
    assert "None" not in text and "nan" not in text.split()
    assert validation_markdown(bare, {}).count("None") == 0
    assert verdict_table(bare).rows and validation_text(bare)


def nulled(value: Any, key: str = "") -> Any:
    """The document with every number that may be unknown unknown."""
    if isinstance(value, dict):
        return {name: nulled(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple) and key != "interval":
        return [nulled(item) for item in value]
    unknowable = {
        *("value", "interval", "rate", "ratio", "mean", "median", "p90", "p99", "p999", "max"),
        *("delta_p_rms", "ppl_baseline", "ppl_policy", "floor", "tokens_per_second", "ttft_seconds"),
        *(
            "kv_bytes_logged",
            "kv_bytes_computed",
            "kv_bytes_slot",
            "peak_rss_bytes",
            "minimum_detectable_effect",
        ),
    }
    return None if key in unknowable else value


def test_numbers_nobody_knows() -> None:
    document = nulled(sample_document())
    for policy in document["policies"]:
        for row in policy["divergence"]:
            row.update(by_position=[], floor=None)
    unknown = parse_result(document, "sample")
    page = validation_page(unknown, {})
    check_page_stands_alone(page)
    assert "no change of any size would have been detected" in text_of(page)
    for cells in verdict_table(unknown).rows:
        assert not any(re.match(r"[+−]?0(\.0+)?x?$", cell) for cell in cells), cells


def test_a_baseline_alone(result: ValidationResult) -> None:
    alone = replace(result, policies=result.policies[:1])
    check_page_stands_alone(validation_page(alone, {}))
    assert headline(alone) == ["Only the baseline, f16, has been measured."]
    assert sure_lines(without(alone, "repeat"))[0].startswith("The baseline was not asked twice")


def test_no_text_breaks_out_of_the_page() -> None:
    hostile = hostile_sample()
    logs = {row.log: HOSTILE for policy in hostile.policies for row in policy.failures if row.log}
    page = validation_page(hostile, logs)
    check_page_stands_alone(page)
    assert "<img" not in page and "onerror" in page
    assert not set(page) & {"\x00", "\x1b", "\u202e"}
    # The log, the reasons and the names are all there as text.
    assert text_of(page).count("<script>alert(1)</script>") > 20


def check_markdown(text: str) -> None:
    """Every table has as many cells in each row, no markup of HTML, and fences that end where they began."""
    n_cells, fence = 0, None
    for line in text.splitlines():
        if fence is None and (match := re.match("`{3,}", line)):
            fence = match[0]
        elif fence is not None:
            fence = None if line == fence else fence
        elif line.startswith("|"):
            bars = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
            assert n_cells in (0, bars), line
            n_cells = bars
        else:
            n_cells = 0
            assert not re.search(r"(?<!\\)(?:\\\\)*[<>`]", line), line
            assert not set(line) & {"\x00", "\x1b", "\u202e"}
    assert fence is None


def test_markdown_is_whole(result: ValidationResult) -> None:
    text = validation_markdown(result, {LOG: "a\n```\n| b |\n<c>"})
    check_markdown(text)
    for policy in result.policies:
        assert escape_markdown(policy.label) in text
    hostile = hostile_sample()
    logs = {row.log: "```\n" + HOSTILE for policy in hostile.policies for row in policy.failures if row.log}
    check_markdown(validation_markdown(hostile, logs))


def test_a_markdown_parser_finds_tables_and_no_markup_of_ours() -> None:
    """By rich's parser: what it renders holds headings, lists, tables and blocks of code, nothing else."""
    hostile = hostile_sample()
    logs = {row.log: "```\n" + HOSTILE for policy in hostile.policies for row in policy.failures if row.log}
    text = validation_markdown(hostile, logs)
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    tags = set(re.findall(r"<(\w+)", rendered))
    assert tags == {
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "li",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "pre",
        "code",
    }
    assert rendered.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20


def test_a_policy_called_by_a_name_shows_its_rules(result: ValidationResult) -> None:
    named = replace(result.policies[2], label="hybrid")
    (row,) = verdict_table(replace(result, policies=(named,))).rows
    assert row[0] == f"hybrid ({HYBRID})"


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text.replace("| q5_0 |", "| q5_0 | more |", 1),
        lambda text: text.replace("## Why", "## <b>Why</b>", 1),
        lambda text: text.replace("\n```", "\n````", 1),
        lambda text: text.replace("## Why", "## Why\x1b", 1),
    ],
)
def test_the_check_of_markdown_notices(result: ValidationResult, broken: Callable[[str], str]) -> None:
    text = validation_markdown(result, {LOG: "a"})
    assert broken(text) != text
    with pytest.raises(AssertionError):
        check_markdown(broken(text))


@given(st.text(st.sampled_from("a1_*`<>|\\#-+=. \n\x00\u202e"), max_size=30))
def test_markdown_shows_text_as_it_is(text: str) -> None:
    """Undoing the backslashes gives the text back; no special character is left alone."""
    escaped = escape_markdown(text)
    assert "\n" not in escaped and not set(escaped) & {"\x00", "\u202e"}
    plain = re.sub(r"\\(.)", r"\1", escaped)
    assert plain == " ".join(text.replace("\x00", "\ufffd").replace("\u202e", "\ufffd").split())
    assert not re.search(r"(?<!\\)(?:\\\\)*[*`<>|#]", escaped)
    assert not re.match(r"(\d+[.)]|[-+=])(\s|$)", escaped)


@pytest.mark.parametrize("draw", DRAW, ids=lambda draw: draw.__name__)
def test_figures_take_their_colours_from_the_page(result: ValidationResult, draw: Any) -> None:
    for narrow in (False, True):
        svg = draw(result, narrow, "x")
        assert not re.search(r"#[0-9a-fA-F]{6}\b", re.sub(r'(href="|url\()#[^")]*', "", svg))
        assert "mathdefault" not in svg, "numbers on the axes are written as markup"
        assert len(svg) < 150_000


def test_many_policies_are_told_apart(result: ValidationResult) -> None:
    first, one, *_ = result.policies
    more = [replace(one, label=f"policy {i} " + "0:q8_0," * 40) for i in range(2 * len(SERIES) + 3)]
    many = replace(result, policies=(first, *more))
    found = inks(many)
    assert len(set(found.values())) == len(found) == len(more) + 1
    check_page_stands_alone(validation_page(many, {}))


def test_logs_are_read_from_the_run_only(result: ValidationResult, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / LOG).write_bytes(b"".join(b"line %d \xff\n" % i for i in range(500)))
    (tmp_path / "secret").write_text("secret")

    def logs(name: str | None) -> dict[str, str]:
        failed = replace(result.policies[-1], failures=(Failure("x", "y", name),))
        return read_excerpts(replace(result, policies=(failed,)), run)

    (text,) = logs(LOG).values()
    assert text.splitlines() == [f"line {i} \ufffd" for i in range(500 - N_LINES, 500)]
    for name in ("../secret", str(tmp_path / "secret"), "logs", "missing", "a\0b", None):
        assert logs(name) == {}
    (run / "link").symlink_to(tmp_path / "secret")
    assert logs("link") == {}


def test_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    document = sample_document()
    (run / "results.json").write_text(json.dumps(document))
    (run / LOG).write_text("the reason\n")
    html, markdown = tmp_path / "report.html", tmp_path / "report.md"
    runner = CliRunner()

    def invoke(*words: object) -> str:
        result = runner.invoke(command, ["report", *map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert invoke(run, "--html", html, "--markdown", markdown) == ""
    check_page_stands_alone(html.read_text())
    assert "the reason" in html.read_text() and "the reason" in markdown.read_text()
    assert invoke(run, "--figure", tmp_path / "figure.svg") == ""
    ET.fromstring((tmp_path / "figure.svg").read_text())
    assert invoke(run) == markdown.read_text() == invoke(run / "results.json")
    assert json.loads(invoke(run, "--json")) == document


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        (["nothing"], "nothing: cannot be read", 1),
        (["."], "results.json: cannot be read: No such file or directory; kvquant validate writes it", 1),
        (["broken.json"], "is not JSON", 1),
        ([".", "--html", "no/such/r.html"], "there is no folder no/such; make it first", 2),
        ([".", "--figure", "r.png"], "give a file name that ends in .svg", 2),
    ],
)
def test_command_refusals(words: list[str], message: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    done = run_kvquant("report", *words, folder=tmp_path)
    assert done.returncode == status
    assert done.stdout == "" and message in done.stderr and done.stderr.count("\n") == 1
    assert done.stderr.startswith("kvquant: error: ")
