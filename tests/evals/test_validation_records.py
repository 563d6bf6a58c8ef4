"""The committed validations say what their records say."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from kvquant.evals.location import eval_folder
from kvquant.evals.validation.assemble import load_validation
from kvquant.evals.validation.records import RESULT, is_validation, task_folders
from kvquant.results.comparison import Verdict
from kvquant.results.validation import read_result

FOLDERS = [folder for folder in sorted((eval_folder() / "results").glob("*")) if is_validation(folder)]


def test_there_is_one() -> None:
    assert [folder.name for folder in FOLDERS] == ["standard"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_results_follow_from_the_records(folder: Path) -> None:
    found = read_result(folder / RESULT)
    assert load_validation(folder) == found
    assert len(found.policies) >= 6
    assert all(policy.reasons for policy in found.policies)
    assert not [policy for policy in found.policies if policy.verdict is Verdict.FAILED]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_records_are_of_the_shipped_suite_and_finished(folder: Path) -> None:
    found = read_result(folder / RESULT)
    suite = tomllib.loads((eval_folder() / "suites" / f"{found.suite.name}.toml").read_text())
    n = len({test["category"] for test in suite["test"]}) * suite["suite"]["n"]
    assert {row.n for policy in found.policies for row in policy.tasks if row.category == "total"} == {n}
    assert len(task_folders(folder)) == len(found.policies) + 1
    for policy in found.policies:
        assert [path.path for path in policy.divergence] == suite["kld"]["paths"]
        assert {point.depth for point in policy.speed} == set(suite["speed"]["depths"])
        assert {point.n_rounds for point in policy.speed} == {suite["speed"]["n_rounds"]}
        assert policy.memory is not None and policy.memory.findings == ()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_records_name_no_place_of_the_machine_they_were_made_on(folder: Path) -> None:
    for path in folder.rglob("*.json*"):
        for line in path.read_text().splitlines():
            argv = json.loads(line).get("argv", []) if path.suffix == ".jsonl" else []
            assert not [part for part in argv if part.startswith(("/", "~"))], path


def test_the_page_of_results_says_what_the_records_say() -> None:
    page = (eval_folder() / "results" / "README.md").read_text()
    rows = {row.split(" | ")[0][2:]: row for row in page.splitlines() if row.startswith("| ")}
    for policy in read_result(eval_folder() / "results" / "standard" / RESULT).policies[1:]:
        assert policy.memory is not None and policy.memory.ratio is not None
        [total] = [row for row in policy.tasks if row.category == "total"]
        ratios = [
            ", ".join(f"{point.ratio:.2f}" for point in policy.speed if point.phase == phase)
            for phase in ("prefill", "decode")
        ]
        [path] = [path for path in policy.divergence if path.path == "prefill"]
        for said in (
            f"| {policy.memory.ratio:.3f} | {total.other.rate:.1%}".replace("%", " %"),
            f"| {total.n_lost}, {total.n_gained} |",
            f"| {path.top1.value:.1%}".replace("%", " %"),
            f"| {'; '.join(ratios)} | {policy.verdict} |",
        ):
            assert said in rows[policy.label], policy.label
