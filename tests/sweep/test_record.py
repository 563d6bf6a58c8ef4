"""The committed sweep of this machine: its files say what its journal says, by the schemas that are
shipped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from kvquant.documents import from_json, to_json
from kvquant.report.sweep_page import disturbance, sweep_page
from kvquant.results.sweep import Ending, SweepResult
from kvquant.schemas import schema_text
from kvquant.sweep.csv_table import read_published, write_csv
from kvquant.sweep.decide import decide
from kvquant.sweep.journal import read_journal
from kvquant.sweep.plan import read_plan, tasks

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "eval/results/sweep"
QUALITY = tuple(
    f"eval/results/real/divergence/{model}.512.prefill.json" for model in ("smollm2-135m", "gemma3-270m")
)
PUBLISHED = "eval/sweep/published-rk3588.csv"
"""What the record was shown with: kvquant sweep --out eval/results/sweep --quality ... --published ..."""


@pytest.fixture(scope="module")
def result() -> SweepResult:
    journal = read_journal(RECORDS)
    last = journal.starts[-1]
    plan = replace(last.plan, quality=QUALITY, published=(PUBLISHED,))
    journal.starts[-1] = replace(last, plan=plan)
    # Quality as it was when the record was made: the folder it came from may be measured anew.
    made = from_json(SweepResult, (RECORDS / "sweep.json").read_text(), "sweep.json")
    known = {(row.sha256 or "", row.policy): row.quality for row in made.rows}
    return decide(journal, known, read_published(ROOT / PUBLISHED))


def test_the_files_are_made_from_the_journal(result: SweepResult) -> None:
    assert json.loads(to_json(result)) == json.loads((RECORDS / "sweep.json").read_text())
    assert write_csv(result.rows) == (RECORDS / "table.csv").read_text()
    page = (RECORDS / "sweep.html").read_text()
    # Figures hang on matplotlib's version; what is said does not.
    assert sweep_page(result).split("<figure")[0] == page.split("<figure")[0]


def test_records_are_valid_by_the_schemas() -> None:
    for line in (RECORDS / "sweep.jsonl").read_text().splitlines():
        document = json.loads(line)
        if document["kind"] != "start":
            schema = json.loads(schema_text(f"sweep-{document['kind']}"))
            Draft202012Validator(schema).validate(document)
    Draft202012Validator(json.loads(schema_text("sweep"))).validate(
        json.loads((RECORDS / "sweep.json").read_text())
    )


def test_every_cell_of_a_round_is_there(result: SweepResult) -> None:
    plan = read_plan(ROOT / "eval/sweep/here.toml")
    first = {task.key for task in tasks(plan) if task.kind == "cell" and task.round == 0}
    assert {cell.key for cell in result.cells} >= first
    assert {cell.ending for cell in result.cells} <= {Ending.DONE, Ending.REFUSED}
    assert all(cell.before and cell.before.load is not None for cell in result.cells)
    assert {board.name for board in result.boards} == {"x86-64, 2 cores"}


def test_the_page_says_that_other_programs_ran(result: SweepResult) -> None:
    assert "Other programs ran" in disturbance(result)
    assert "Other programs ran" in (RECORDS / "sweep.html").read_text()


def test_nothing_of_the_machine_but_what_it_is() -> None:
    for path in RECORDS.iterdir():
        text = path.read_text()
        assert "/work" not in text and "/tmp" not in text, path.name
