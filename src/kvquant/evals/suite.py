"""Suites, read from TOML: which tests, how they count, and by which rules two runs are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from kvquant.errors import UsageError
from kvquant.evals.location import all_facts, eval_folder, read_toml
from kvquant.evals.suite_parts import TABLES, Parts, parse_parts
from kvquant.evals.task import GRADING_VERSION, Question, Task, questions
from kvquant.evals.tasks import TASKS
from kvquant.evals.toml_table import only, positive_at, table_at, text_at

_FIRST_VERSIONS = Path(__file__).with_name("first_versions.json")


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
    """How what was measured becomes a verdict (docs/evaluation.md).

    alpha: largest p that counts as a difference. power: chance of finding the minimum detectable effect.
    disagreement: least share of samples assumed to differ between two runs of equal quality. safe_loss: a
    loss of rate that does not matter. broken_loss: one from which a policy is called broken. safe_kl: mean KL
    above the floor, in nats, that does not matter. broken_kl: one from which a policy is called broken.
    safe_speed: ratio to the baseline's speed from which a policy is not called slower.
    """

    alpha: float
    power: float
    disagreement: float
    safe_loss: float
    broken_loss: float
    safe_kl: float = 0.01
    broken_kl: float = 0.5
    safe_speed: float = 0.9


@dataclass(frozen=True)
class Suite:
    """Tests in order, none in a suite of parts only.

    n: samples per category unless asked otherwise. max_tokens: length of an answer.

    digest: SHA-256 of everything that decides what is asked and how it is graded: the length of an answer,
    the tests, the versions of their tasks and of grading, and the facts. Runs with different digests cannot
    be compared.
    """

    name: str
    about: str
    n: int
    max_tokens: int
    tests: tuple[SuiteTest, ...]
    rules: Rules
    parts: Parts
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
    only(document, {"suite", "rules", "test", *TABLES}, where)
    head = table_at(document, "suite", where)
    only(head, {"name", "about", "n", "max_tokens"}, f"{where}: [suite]")
    parts = parse_parts(document, where)
    entries = document.get("test", [] if parts.any else None)
    if not isinstance(entries, list) or not (entries or parts.any):
        raise UsageError(f"{where}: has no [[test]]; name at least one")
    tests = tuple(_test(entry, f"{where}: test {index + 1}") for index, entry in enumerate(entries))
    names = [test.name for test in tests]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: two tests are called {twice!r}; give one of them a name of its own")
    n, max_tokens = (
        int(positive_at(head, key, f"{where}: [suite]")) if tests else 0 for key in ("n", "max_tokens")
    )
    rules = _rules(table_at(document, "rules", where), where)
    digest = _digest(max_tokens, entries, tests)
    name, about = (text_at(head, key, f"{where}: [suite]") for key in ("name", "about"))
    return Suite(name, about, n, max_tokens, tests, rules, parts, digest)


def samples(suite: Suite, n: int, seed: int) -> list[Sample]:
    """Return ``n`` samples per category, dealt in turn to its tests; a smaller ``n`` gives a subset.

    Categories alternate, so that a run cut short has some of each. Raises UsageError when a test has too few
    questions.
    """
    if not suite.tests:
        raise UsageError(f"the suite {suite.name} has no tests to ask; kvquant validate measures its parts")
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


def _digest(max_tokens: int, entries: object, tests: Sequence[SuiteTest]) -> str:
    """The digest of a suite. Its rules judge runs and do not change them: they are left out.

    Version 1 of everything stands in it as the files were that the digest was once drawn from, so that runs
    of that time are still known; later versions are added by number.
    """
    first = json.loads(_FIRST_VERSIONS.read_bytes())
    asked = {"max_tokens": max_tokens, "tests": entries, "tasks": first["files"]}
    versions = {test.task.name: test.task.version for test in tests} | {"": GRADING_VERSION}
    later: dict[str, object] = {name: version for name, version in versions.items() if version > 1}
    if (facts := _sha256(all_facts())) != first["facts"]:
        later["facts"] = facts
    return _sha256(asked | ({"later": later} if later else {}))


def _sha256(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _test(entry: object, where: str) -> SuiteTest:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: is not a table; write [[test]]")
    task_name = text_at(entry, "task", where)
    if task_name not in TASKS:
        raise UsageError(f"{where}: no task {task_name!r}; known: {', '.join(TASKS)}")
    task = TASKS[task_name]
    own = {"task", "name", "category", "weight"}
    only(entry, own | set(task.parameters), where)
    parameters = {key: item for key, item in entry.items() if key not in own}
    name = text_at(entry, "name", where) if "name" in entry else task_name
    return SuiteTest(
        name, text_at(entry, "category", where), task, positive_at(entry, "weight", where), parameters
    )


def _rules(table: Mapping[str, Any], where: str) -> Rules:
    where = f"{where}: [rules]"
    names = {field.name for field in fields(Rules)}
    needed = {field.name for field in fields(Rules) if field.default is MISSING}
    only(table, names, where)
    values = {name: positive_at(table, name, where) for name in sorted(needed | set(table))}
    # KL has no upper end.
    above = next((name for name, value in values.items() if value >= 1 and not name.endswith("_kl")), None)
    if above is not None:
        raise UsageError(f"{where}: {above} is {values[above]:g}, it must lie between 0 and 1")
    return Rules(**values)
