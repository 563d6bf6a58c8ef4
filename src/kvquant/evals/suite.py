"""Suites, read from TOML: which tests, how they count, and by which rules two runs are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kvquant.errors import UsageError
from kvquant.evals.location import eval_folder, read_toml
from kvquant.evals.task import Question, Task, questions
from kvquant.evals.tasks import TASKS


@dataclass(frozen=True)
class SuiteTest:
    """One test: a task with parameters. weight: what a test that is always right adds to the quality."""

    name: str
    category: str
    task: Task
    weight: float
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Rules:
    """How a paired comparison becomes a verdict (docs/evaluation.md).

    alpha: largest p that counts as a difference. power: chance of finding the minimum detectable effect.
    disagreement: least share of samples assumed to differ between two runs of equal quality. safe_loss: a
    loss of rate that does not matter. broken_loss: one from which a policy is called broken.
    """

    alpha: float
    power: float
    disagreement: float
    safe_loss: float
    broken_loss: float


@dataclass(frozen=True)
class Suite:
    """Tests in order. n: samples per category unless asked otherwise. max_tokens: length of an answer.

    digest: SHA-256 of everything that decides what is asked and how it is graded, the package's version of
    the tasks and the facts included; runs with different digests cannot be compared.
    """

    name: str
    about: str
    n: int
    max_tokens: int
    tests: tuple[SuiteTest, ...]
    rules: Rules
    digest: str

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories in the order of their first tests."""
        return tuple(dict.fromkeys(test.category for test in self.tests))


@dataclass(frozen=True)
class Sample:
    """One question of a run. id: ``TEST/INDEX``, the same in every run with this suite and seed."""

    id: str
    test: SuiteTest
    question: Question


def suite_names() -> list[str]:
    """The suites in ``eval/suites``."""
    return sorted(path.stem for path in (eval_folder() / "suites").glob("*.toml"))


def load_suite(name: str) -> Suite:
    """Load a suite by name, or from a path that ends in .toml. Raises KVQuantError, one line."""
    if name.endswith(".toml"):
        path = Path(name)
    elif name in suite_names():
        path = eval_folder() / "suites" / f"{name}.toml"
    else:
        raise UsageError(f"no suite {name!r}; known: {', '.join(suite_names())}, or give a .toml file")
    return parse_suite(read_toml(path), str(path))


def parse_suite(document: Mapping[str, Any], where: str) -> Suite:
    """Build a suite from its TOML document. Raises UsageError naming the file and the key at fault."""
    _only(document, {"suite", "rules", "test"}, where)
    head = _table(document, "suite", where)
    _only(head, {"name", "about", "n", "max_tokens"}, f"{where}: [suite]")
    entries = document.get("test")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{where}: has no [[test]]; name at least one")
    tests = tuple(_test(entry, f"{where}: test {index + 1}") for index, entry in enumerate(entries))
    names = [test.name for test in tests]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: two tests are called {twice!r}; give one of them a name of its own")
    n, max_tokens = (_positive(head, key, f"{where}: [suite]") for key in ("n", "max_tokens"))
    rules = _rules(_table(document, "rules", where), where)
    # The rules judge runs and do not change them: they are left out of the digest.
    asked = {"max_tokens": max_tokens, "tests": entries, "tasks": _sources()}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    name, about = (_text(head, key, f"{where}: [suite]") for key in ("name", "about"))
    return Suite(name, about, int(n), int(max_tokens), tests, rules, digest)


def samples(suite: Suite, n: int, seed: int) -> list[Sample]:
    """Return ``n`` samples per category, dealt in turn to its tests; a smaller ``n`` gives a subset.

    Categories alternate, so that a run cut short has some of each. Raises UsageError when a test has too few
    questions.
    """
    if n < 1:
        raise UsageError(f"--n {n}: give a positive number of samples per category")
    by_category: list[list[Sample]] = []
    for category in suite.categories:
        tests = [test for test in suite.tests if test.category == category]
        dealt = {test.name: len(range(place, n, len(tests))) for place, test in enumerate(tests)}
        drawn = {t.name: questions(t.task, dealt[t.name], seed, t.name, t.parameters) for t in tests}
        turns = [(tests[turn % len(tests)], turn // len(tests)) for turn in range(n)]
        by_category.append([Sample(f"{test.name}/{i}", test, drawn[test.name][i]) for test, i in turns])
    return [sample for turn in zip(*by_category, strict=True) for sample in turn]


def _sources() -> dict[str, str]:
    """SHA-256 of every file that decides what is asked and how an answer is graded."""
    package = Path(__file__).parent
    graders = [package / f"{name}.py" for name in ("answers", "reply", "task", "sandbox", "sandbox_runner")]
    made_up = [package.parent / "reference" / f"{name}.py" for name in ("tasks", "tokenizer", "vocabulary")]
    facts = (eval_folder() / "facts").glob("*.toml")
    files = [*graders, *made_up, *(package / "tasks").glob("*.py"), *facts]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def _test(entry: object, where: str) -> SuiteTest:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: is not a table; write [[test]]")
    task_name = _text(entry, "task", where)
    if task_name not in TASKS:
        raise UsageError(f"{where}: no task {task_name!r}; known: {', '.join(TASKS)}")
    task = TASKS[task_name]
    own = {"task", "name", "category", "weight"}
    _only(entry, own | set(task.parameters), where)
    parameters = {key: item for key, item in entry.items() if key not in own}
    name = _text(entry, "name", where) if "name" in entry else task_name
    return SuiteTest(
        name, _text(entry, "category", where), task, _positive(entry, "weight", where), parameters
    )


def _rules(table: Mapping[str, Any], where: str) -> Rules:
    names = [field.name for field in fields(Rules)]
    _only(table, set(names), f"{where}: [rules]")
    values = {name: _positive(table, name, f"{where}: [rules]") for name in names}
    above = next((name for name, value in values.items() if value >= 1), None)
    if above is not None:
        raise UsageError(f"{where}: [rules]: {above} is {values[above]:g}, it must lie between 0 and 1")
    return Rules(**values)


def _only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = next((key for key in table if key not in known), None)
    if unknown is not None:
        raise UsageError(f"{where}: unknown key {unknown!r}; known: {', '.join(sorted(known))}")


def _table(document: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table = document.get(key)
    if not isinstance(table, dict):
        raise UsageError(f"{where}: has no [{key}]")
    return table


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: {key} must be a text")
    return value


def _positive(table: Mapping[str, Any], key: str, where: str) -> float:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UsageError(f"{where}: {key} must be a positive number")
    return float(value)
