"""Suites, read from TOML: which tests, how they count, and by which rules two runs are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kvquant.documents import from_document, read_toml
from kvquant.errors import UsageError
from kvquant.evals.location import all_facts, eval_folder
from kvquant.evals.suite_parts import CountedTask, Parts, Rules, SuiteFile
from kvquant.evals.task import GRADING_VERSION, Question, Task, questions
from kvquant.evals.tasks import TASKS

__all__ = ["Rules", "Sample", "Suite", "SuiteTest", "load_suite", "parse_suite", "samples", "suite_names"]

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
    return parse_suite(read_toml(dict[str, Any], path), str(path))


def parse_suite(document: Mapping[str, Any], where: str) -> Suite:
    """Build a suite from its TOML document. Raises UsageError naming the file and the key at fault."""
    file = from_document(SuiteFile, document, where, known_only=True, error=UsageError)
    head, parts = file.suite, Parts.of(file)
    if not (file.test or parts.any):
        raise UsageError(f"{where}: has no [[test]]; add at least one")
    tests = tuple(_test(entry, f"{where}.test[{index}]") for index, entry in enumerate(file.test))
    names = [test.name for test in tests]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: two tests are called {twice!r}; give one of them another name")
    if tests and (head.n is None or head.max_tokens is None):
        raise UsageError(f"{where}.suite: a suite with tests needs both n and max_tokens")
    n, max_tokens = head.n or 0, head.max_tokens or 0
    digest = _digest(max_tokens, file.test, tests)
    return Suite(head.name, head.about, n, max_tokens, tests, file.rules, parts, digest)


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


def _test(entry: Mapping[str, Any], where: str) -> SuiteTest:
    known = {field.name for field in fields(CountedTask)}
    head = {key: value for key, value in entry.items() if key in known}
    parameters = {key: value for key, value in entry.items() if key not in known}
    counted = from_document(CountedTask, head, where, error=UsageError)
    task = TASKS.get(counted.task)
    if task is None:
        raise UsageError(f"{where}: no task {counted.task!r}; known: {', '.join(sorted(TASKS))}")
    unknown = next((key for key in parameters if key not in task.parameters), None)
    if unknown is not None:
        takes = ", ".join(sorted(known | set(task.parameters)))
        raise UsageError(f"{where}: unknown key {unknown!r}; known: {takes}")
    return SuiteTest(counted.name or task.name, counted.category, task, counted.weight, parameters)
