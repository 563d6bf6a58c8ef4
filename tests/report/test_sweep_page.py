"""The table and the page of a sweep: what they say, and that a hostile name does nothing."""

from __future__ import annotations

from dataclasses import replace

from kvquant.report.sweep_page import disturbance, sweep_page
from kvquant.report.sweep_tables import decision_table, sweep_text
from report.page_checks import check_page_stands_alone
from report.sweep_sample import HOSTILE, empty_sweep, sweep_sample


def test_the_page_is_sound_whatever_names_hold() -> None:
    page = sweep_page(sweep_sample())
    check_page_stands_alone(page)
    assert HOSTILE not in page
    for part in ("What to choose", "The decision table", "Memory against speed", "Every setting", "Context"):
        assert f"<h2>{part}</h2>" in page


def test_an_empty_sweep_has_a_page_and_a_line() -> None:
    check_page_stands_alone(sweep_page(empty_sweep()))
    assert sweep_text(empty_sweep()) == "nothing was measured yet"


def test_a_busy_machine_is_said_first() -> None:
    assert "Other programs ran: the servers' threads had 40.0 % of the processor time" in disturbance(
        sweep_sample()
    )
    assert disturbance(sweep_sample(0.97)).startswith("The cells had the machine to themselves: 97.0 %")
    quiet = replace(sweep_sample(), cells=())
    assert disturbance(quiet) == ""
    assert "Other programs ran" in sweep_page(sweep_sample())


def test_unknown_numbers_are_question_marks() -> None:
    result = sweep_sample()
    table = decision_table(result)
    of_theirs = dict(zip(table.head, table.rows[-1], strict=True))
    assert of_theirs["decode deep"] == "?" and of_theirs["KV"] == "1.00 MiB" and of_theirs["stable"] == "?"
    assert "1 crashed" in sweep_text(result)
