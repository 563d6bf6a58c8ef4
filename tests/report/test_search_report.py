"""A search on a terminal and as a page: one table, one sentence, figures that stand alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvquant.report.search import comparison_table, search_text
from kvquant.report.search_figures import LEAST_SHADE, _shade, additive_pairs
from kvquant.report.search_page import search_page
from kvquant.results.search import SearchResult
from kvquant.search.rivals import Hints
from report.page_checks import check_page_stands_alone, text_of
from search.true_meter import SIDES, found


@pytest.fixture(scope="module")
def result() -> SearchResult:
    return found(hints=Hints(weight_norms={side: float(side.layer) for side in SIDES}))


def test_the_page_stands_alone_and_says_what_the_result_says(result: SearchResult) -> None:
    page = search_page(result)
    check_page_stands_alone(page)
    words = text_of(page)
    for said in (
        result.policy,
        result.sentence,
        result.command,
        "random",
        "weight norms",
        "Predicted against measured",
    ):
        assert said in words, said
    for rival in result.rivals:
        assert rival.name in words and rival.how in words and rival.policy in words
    for left_out in result.left_out:
        assert left_out.why in words


def test_a_name_cannot_become_markup(result: SearchResult) -> None:
    named = replace(result.start.model, name="<script>alert(1)</script>")
    page = search_page(replace(result, start=replace(result.start, model=named)))
    assert "<script>" not in page
    check_page_stands_alone(page)


def test_the_table_is_in_the_order_of_the_held_out_text(result: SearchResult) -> None:
    rows = comparison_table(result).rows
    assert rows[0][0] == "the search" and [row[0] for row in rows[-2:]] == [
        "mean of 5 random",
        "best of 5 random",
    ]
    assert len(rows) == 1 + len(result.rivals) + 2
    simple = comparison_table(replace(result, simple=result.rivals[0].name, policy=result.rivals[0].policy))
    assert len(simple.rows) == len(rows) - 1


def test_a_terminal_gets_the_policy_the_table_and_the_sentence(result: SearchResult) -> None:
    lines = search_text(result).splitlines()
    assert lines[0] == result.policy and lines[-1] == result.sentence
    assert all(len(line) <= 80 for line in search_text(result, 80).splitlines()[3:-2])


def test_unknown_numbers_leave_a_page(result: SearchResult) -> None:
    bare = replace(
        result,
        rivals=(),
        candidates=(),
        random=None,
        against=None,
        kl_held_out=None,
        front=(),
        costs_from="capture",
    )
    page = search_page(bare)
    check_page_stands_alone(page)
    assert not additive_pairs(bare) and "Predicted against measured" not in page


def test_the_shade_of_a_cost_is_monotone() -> None:
    shades = [_shade(cost, 1e-4, 1.0) for cost in (0.0, 1e-4, 1e-3, 0.1, 1.0)]
    assert shades == sorted(shades) and shades[0] == shades[1] == LEAST_SHADE and shades[-1] == 1
    assert _shade(1.0, 1.0, 1.0) == LEAST_SHADE
