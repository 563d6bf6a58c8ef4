"""`kvquant published` prints what `recompute` returns, as text and as one JSON document."""

from __future__ import annotations

import json

from click.testing import CliRunner

from kvquant.analysis.published import recompute
from kvquant.cli.published import published


def test_text_states_each_claim_and_verdict() -> None:
    result = CliRunner().invoke(published, [])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    for figure in recompute():
        start = lines.index(f"  {figure.claim}: {figure.published}")
        assert lines[start + 1] == f"    {figure.sentence}"


def test_json_is_one_document() -> None:
    result = CliRunner().invoke(published, ["--json", "--seed", "3"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["seed"] == 3
    figures = recompute(3)
    assert [entry["key"] for entry in document["figures"]] == [figure.key for figure in figures]
    entry, figure = document["figures"][1], figures[1]
    assert entry["verdict"] == "reproduced under its convention"
    assert entry["actual"]["value"] == figure.actual.value
    assert entry["convention"]["standard_error"] == figure.convention.standard_error > 0


def test_a_negative_seed_is_a_usage_error() -> None:
    result = CliRunner().invoke(published, ["--seed", "-1"])
    assert result.exit_code == 2
    assert "--seed" in result.stderr
