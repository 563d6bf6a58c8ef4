"""Published sets: their own solutions are right, and calls are graded as their own checker grades them."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.real_files import fetched
from kvquant.assets.small import task_data
from kvquant.evals.outcome import Outcome
from kvquant.evals.reply import Reply, ToolCall
from kvquant.evals.suite import load_suite, samples
from kvquant.evals.task import grade, questions
from kvquant.evals.tasks import TASKS
from kvquant.evals.tasks.published import check_call, check_program, mistake_in, rows, written_calls


def data(name: str) -> Path:
    """The folder of a set; at a desk without a network, a reason to skip."""
    return fetched(lambda: task_data(name))


def test_all_canonical_solutions_pass_and_bodies_alone_do() -> None:
    data("human-eval")
    problems = rows("human-eval", "problems.jsonl.gz")
    assert len(problems) == 164

    def solved(problem: dict[str, Any]) -> str:
        whole = f"```python\n{problem['prompt']}{problem['canonical_solution']}```"
        graded = check_program(whole, problem)
        return "" if graded.outcome is Outcome.RIGHT else f"{problem['task_id']}: {graded.detail}"

    with ThreadPoolExecutor(2) as pool:
        assert [found for found in pool.map(solved, problems) if found] == []
    assert check_program(problems[0]["canonical_solution"], problems[0]).outcome is Outcome.RIGHT


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("def has_close_elements(numbers, threshold):\n    return True", Outcome.WRONG),
        ("    return 1 / 0", Outcome.WRONG),
        ("I would sort the numbers first.", Outcome.MALFORMED),
        ("def has_close_elements(numbers, threshold):\n    import os\n    os._exit(0)", Outcome.WRONG),
        ("    return None\n\n\ndef check(candidate):\n    pass\n", Outcome.WRONG),
    ],
)
def test_other_solutions_do_not(answer: str, outcome: Outcome) -> None:
    data("human-eval")
    assert check_program(answer, rows("human-eval", "problems.jsonl.gz")[0]).outcome is outcome


def test_the_questions_of_gsm8k_are_graded_by_their_numbers() -> None:
    data("gsm8k")
    asked = questions(TASKS["gsm8k"], 100, 0, "gsm8k", {})
    answers = {case["id"]: case["expected"] for case in rows("gsm8k", "cases.jsonl")}
    assert len(answers) == 100
    for question in asked:
        expected = answers[str(question.labels["question"])]
        assert grade(question, Reply(f"Let me see.\nAnswer: {expected}")).outcome is Outcome.RIGHT
        assert grade(question, Reply(f"Answer: {expected}1")).outcome is Outcome.WRONG


@pytest.mark.parametrize("name", ["bfcl", "human-eval", "gsm8k"])
def test_the_suites_ask_every_question_once(name: str) -> None:
    data(name)
    suite = load_suite(name)
    drawn = samples(suite, suite.n, 0)
    asked = {(s.test.name, s.question.prompt, repr(s.question.tools)) for s in drawn}
    assert len(asked) == len(drawn) == suite.n * len(suite.categories)
    for sample in drawn:
        for tool in sample.question.tools:
            described = json.dumps(tool)
            assert "." not in tool["function"]["name"]
            assert not any(f'"type": "{kind}"' in described for kind in ("dict", "float", "tuple", "any"))


# Function calls against the set's own checker.

KINDS = ("simple", "multiple")


@cache
def their_checker() -> Callable[[Any, Any, Any], bool]:
    """The set's own checker, with stand-ins for what it imports and does not use for Python."""
    text = (data("bfcl") / "ast_checker.py").read_text()
    language = Enum("Language", ["JAVA", "JAVASCRIPT", "PYTHON"])
    stand_ins = {
        "bfcl_eval.constants.enums": {"Language": language},
        "bfcl_eval.constants.model_config": {
            "MODEL_CONFIG_MAPPING": {"m": SimpleNamespace(underscore_to_dot=True)}
        },
        "bfcl_eval.constants.type_mappings": {"JAVA_TYPE_CONVERSION": {}, "JS_TYPE_CONVERSION": {}},
        "bfcl_eval.eval_checker.ast_eval.type_convertor.java_type_converter": {"java_type_converter": None},
        "bfcl_eval.eval_checker.ast_eval.type_convertor.js_type_converter": {"js_type_converter": None},
    }
    namespace: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, fields in stand_ins.items():
            module = ModuleType(name)
            vars(module).update(fields)
            for parent in [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]:
                if parent not in sys.modules:
                    patch.setitem(sys.modules, parent, ModuleType(parent))
            patch.setitem(sys.modules, name, module)
        exec(compile(text, "ast_checker", "exec"), namespace)

    def check(function: Any, arguments: Any, right: Any) -> bool:
        called = {function["name"].replace(".", "_"): copy.deepcopy(arguments)}
        try:
            found = namespace["simple_function_checker"](
                function, called, {function["name"]: right}, language["PYTHON"], "m"
            )
        except (TypeError, AttributeError, KeyError, IndexError):
            return False
        return bool(found["valid"])

    return check


@cache
def requests() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(function, right arguments) of every request."""
    data("bfcl")
    found = []
    for kind in KINDS:
        for asked, answer in zip(
            rows("bfcl", f"{kind}.jsonl"), rows("bfcl", f"{kind}-answers.jsonl"), strict=True
        ):
            assert asked["id"] == answer["id"]
            ((name, right),) = answer["ground_truth"][0].items()
            found.append((next(f for f in asked["function"] if f["name"] == name), right))
    return found


def first_answer(listed: list[Any]) -> Any:
    """The first value that counts; of an object, of each of its keys."""
    value = next((one for one in listed if one != ""), "")
    if isinstance(value, dict):
        return {key: first_answer(inner) for key, inner in value.items() if "" not in inner}
    if isinstance(value, list):
        return [first_answer([one]) if isinstance(one, dict) else one for one in value]
    return value


def right_arguments(function: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    needed = function["parameters"]["required"]
    return {
        name: first_answer(listed) for name, listed in right.items() if name in needed or "" not in listed
    }


def altered(value: Any) -> Iterator[Any]:
    """Values that look like another, of its type and of others."""
    yield from (None, "", str(value), [value], {"a": value}, True, 0, 1.5)
    if isinstance(value, str):
        yield from (value.upper(), f" {value}-", value.replace(" ", ""), value + "x")
    if isinstance(value, int | float):
        yield from (value + 1, -value, float(value), int(value))
    if isinstance(value, list):
        yield from (value[::-1], value[1:], [*value, *value[:1]], [str(item) for item in value], [])
    if isinstance(value, dict):
        yield from ({**value, "extra": 1}, dict(list(value.items())[1:]), {})
        yield from ({**value, key: other} for key in value for other in (None, "", 3, [1]))


def test_every_right_call_is_right_and_every_altered_one_is_graded_as_by_the_set() -> None:
    theirs = their_checker()
    n_right = n_compared = 0
    for function, right in requests():
        arguments = right_arguments(function, right)
        assert mistake_in(arguments, function, right) == ""
        n_right += 1
        calls = [{**arguments, "no_such": 1}, {}]
        calls += [{k: v for k, v in arguments.items() if k != name} for name in arguments]
        calls += [{**arguments, name: other} for name in arguments for other in altered(arguments[name])]
        calls += [{**arguments, name: one} for name, listed in right.items() for one in listed]
        for call in calls:
            n_compared += 1
            ours = mistake_in(call, function, right) == ""
            assert ours == theirs(function, call, right), (function["name"], call, right)
    assert n_right == 600 and n_compared > 10_000


CALL = '{"name": "f", "arguments": {"a": [1, "x"]}}'


@pytest.mark.parametrize(
    "answer",
    [
        CALL,
        f" {CALL}\n",
        f"```json\n{CALL}\n```",
        f"```\n{CALL}\n```",
        f"Here it is:\n```json\n{CALL}\n```\nIt does so.",
        f"<tool_call>\n{CALL}\n</tool_call>",
    ],
)
def test_a_call_that_the_text_spells_out_is_a_call(answer: str) -> None:
    (call,) = written_calls(answer)
    assert (call.name, json.loads(call.arguments)) == ("f", {"a": [1, "x"]})
    assert len(written_calls(f"```json\n{CALL}\n```\n```json\n{CALL}\n```")) == 2
    function = {"name": "f", "parameters": {"properties": {"a": {"type": "any"}}, "required": ["a"]}}
    assert check_call(answer, (), function, {"a": ["x"]}).outcome is not Outcome.RIGHT
    said = answer.replace('[1, "x"]', '"x"')
    assert check_call(said, (), function, {"a": ["x"]}).outcome is Outcome.RIGHT
    sent = (ToolCall("f", '{"a": "y"}'),)
    assert check_call(said, sent, function, {"a": ["x"]}).outcome is not Outcome.RIGHT, "what is sent counts"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "f(1)",
        "[" * 100_000,
        CALL[:-1],
        f"Here it is: {CALL}",
        f"[{CALL}]",
        '{"name": "f", "parameters": {"a": 1}}',
        '{"name": "f", "arguments": "{}"}',
        '{"name": 1, "arguments": {}}',
        '{"name": "f", "arguments": {}, "description": "of f"}',
        f"```python\n{CALL}\n```",
        f"```json\n{CALL}",
        f"```json\n{CALL}\n```\n```json\nno\n```",
    ],
)
def test_what_is_no_call_is_none(answer: str) -> None:
    assert written_calls(answer) == ()


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats(-2, 2)
    | st.sampled_from(["", "a", "A b", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.data())
def test_any_call_is_graded_as_by_the_set(drawn: st.DataObject) -> None:
    function, right = drawn.draw(st.sampled_from(requests()))
    arguments = right_arguments(function, right)
    name = drawn.draw(st.sampled_from(sorted(function["parameters"]["properties"])))
    call = {**arguments, name: drawn.draw(values)}
    assert (mistake_in(call, function, right) == "") == their_checker()(function, call, right), call


def test_calls_are_read_from_replies() -> None:
    data("bfcl")
    question = questions(TASKS["bfcl_multiple"], 1, 0, "x", {})[0]
    names = [tool["function"]["name"] for tool in question.tools]
    index = next(
        i for i, row in enumerate(rows("bfcl", "multiple.jsonl")) if row["id"] == question.labels["request"]
    )
    ((name, right),) = rows("bfcl", "multiple-answers.jsonl")[index]["ground_truth"][0].items()
    function = next(f for f in rows("bfcl", "multiple.jsonl")[index]["function"] if f["name"] == name)
    name = name.replace(".", "_")
    call = ToolCall(name, json.dumps(right_arguments(function, right)))
    other = ToolCall(next(found for found in names if found != name), call.arguments)
    assert grade(question, Reply("", (call,))).outcome is Outcome.RIGHT
    assert grade(question, Reply("", (other,))).outcome is Outcome.WRONG
    assert grade(question, Reply("", (call, call))).outcome is Outcome.WRONG
    assert grade(question, Reply("It is 5.")).outcome is Outcome.WRONG
    assert grade(question, Reply("")).outcome is Outcome.MALFORMED
    for arguments in ("{", "[]", "[" * 10**5, "3"):
        assert grade(question, Reply("", (ToolCall(name, arguments),))).outcome is Outcome.MALFORMED
