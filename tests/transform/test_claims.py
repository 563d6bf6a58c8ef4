"""docs/claims.md shows what the record says; a verdict follows from the findings alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from marked_page import filled

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])


def test_the_page_shows_the_table() -> None:
    import claims

    page = claims.PAGE.read_text()
    assert filled(page, {"claims": claims.table(claims.read())}) == page


@pytest.mark.parametrize(
    ("holds", "verdict"),
    [((True, True), "holds"), ((True, False), "holds for some"), ((False, False), "refuted")],
)
def test_a_verdict_follows_from_the_findings(holds: tuple[bool, ...], verdict: str) -> None:
    import claims

    assert claims.verdict([claims.Finding(one, "") for one in holds]) == verdict


def test_a_claim_on_what_was_not_measured_is_an_error() -> None:
    import claims

    for claim in claims.CLAIMS:
        with pytest.raises(ValueError, match="unpack"):
            claim.test(claims.Kl([], "none"))


def test_what_the_page_concludes_holds_in_the_record() -> None:
    import claims

    for model in claims.MODELS:
        kl = claims.Kl(claims.read(), model)
        pairs = [
            ("q8_0", "q4_0"),
            ("q5_0", "q5_0"),
            ("q4_0", "q4_0"),
            ("q8_0", "tq3"),
            ("q5_0", "tq3"),
            ("q4_0", "tq3"),
        ]
        assert min(pairs, key=lambda pair: kl(*pair)) == ("q8_0", "q4_0")
        assert 0.04 < kl("q4_0") < 1.1
