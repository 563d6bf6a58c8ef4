"""The shipped schemas are those of the dataclasses, and the committed records are valid by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator, ValidationError

from kvquant.cli.main import kvquant
from kvquant.errors import UsageError
from kvquant.schemas import schema_names, schema_text
from write_schemas import DOCUMENTS, schema_of

RESULTS = Path(__file__).parents[1] / "eval/results/standard"


def validate(name: str, document: Any) -> None:
    Draft202012Validator(json.loads(schema_text(name))).validate(document)


def lines(path: Path, kind: str) -> list[dict[str, Any]]:
    return [line for text in path.read_text().splitlines() if (line := json.loads(text))["kind"] == kind]


def test_there_is_a_schema_for_each_document() -> None:
    assert schema_names() == tuple(sorted(DOCUMENTS))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_shipped_schema_is_that_of_the_dataclass(name: str) -> None:
    assert schema_text(name) == schema_of(name), "run tools/write_schemas.py"
    Draft202012Validator.check_schema(json.loads(schema_text(name)))
    assert json.loads(schema_text(name))["$defs"][DOCUMENTS[name].__name__]["description"]


def test_committed_records_are_valid() -> None:
    validate("validation", json.loads((RESULTS / "results.json").read_text()))
    for start in lines(RESULTS / "validation.jsonl", "start"):
        validate("validation-start", start)
    for samples in sorted((RESULTS / "tasks").glob("*/samples.jsonl")):
        for run in lines(samples, "run"):
            validate("run", run)
        for sample in lines(samples, "sample"):
            validate("sample", sample)


def test_what_an_earlier_version_wrote_is_valid() -> None:
    """Without the keys that were added since."""
    document = json.loads((RESULTS / "results.json").read_text())
    for policy in document["policies"]:
        policy["memory"].pop("n_slot_tokens")
        for row in (*policy["tasks"], *policy["repeat"]):
            row.pop("n_unanswered"), row.pop("reason")
    validate("validation", document)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("memory", ["memory", "--shape", "deepseek-v3", "--ctx", "256"]),
        ("search-proxy", ["search", "--budget", "0.5x", "--shape", "qwen3.5-2b", "--ctx", "256"]),
        ("comparison", ["compare", *map(str, sorted((RESULTS / "tasks").glob("*"))[:2])]),
        ("ranking", ["rank", str(RESULTS)]),
        ("validation", ["compare", str(RESULTS)]),
        ("analysis", ["analyze", "--tokens", "32", "--queries", "4", "--heads", "1", "--against", "f16"]),
    ],
)
def test_what_commands_print_is_valid(name: str, arguments: list[str]) -> None:
    result = CliRunner().invoke(kvquant, [*arguments, "--json"], catch_exceptions=False)
    document = json.loads(result.stdout)
    validate(name, document)
    with pytest.raises(ValidationError):
        validate(name, {key: value for key, value in document.items() if key not in list(document)[:2]})


def test_the_command() -> None:
    runner = CliRunner()
    assert runner.invoke(kvquant, ["schema"]).stdout.split() == list(schema_names())
    assert runner.invoke(kvquant, ["schema", "search"]).stdout == schema_text("search")
    with pytest.raises(UsageError, match="no schema 'nothing'; known: analysis, "):
        schema_text("nothing")
