"""Published question sets, fetched by hash when they are first asked (kvquant.assets).

HumanEval: 164 Python functions to complete, graded by the set's own tests in the sandbox. GSM8K: 100 of its
arithmetic questions, graded by the final number. BFCL: one function call each, chosen from one function
(simple) or two to four (multiple), graded argument by argument as the set's own checker does.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from kvquant.assets.small import task_data
from kvquant.evals.answers import ANSWER_LINE, check_number, numbers_in, shown
from kvquant.evals.outcome import RIGHT, Graded, malformed, wrong
from kvquant.evals.reply import ToolCall
from kvquant.evals.sandbox import Failure, call_function
from kvquant.evals.task import Parameters, Question, Task, text_check
from kvquant.evals.tasks.code import code_in

Row = Mapping[str, Any]


@cache
def rows(name: str, file: str) -> tuple[Row, ...]:
    """Return the rows of a file of a set, fetched when it is not there yet."""
    data = (task_data(name) / file).read_bytes()
    text = gzip.decompress(data) if file.endswith(".gz") else data
    return tuple(json.loads(line) for line in text.splitlines() if line.strip())


def _human_eval(rng: random.Random, _: Parameters) -> Question:
    """A function to complete, from its head and docstring."""
    problem = rng.choice(rows("human-eval", "problems.jsonl.gz"))
    prompt = (
        "Complete this Python function. Reply with the whole function, imports included, as Python code only."
        f"\n\n```python\n{problem['prompt'].strip()}\n```"
    )
    check = text_check(lambda answer: check_program(answer, problem))
    return Question(prompt, check, labels={"problem": problem["task_id"]})


def check_program(answer: str, problem: Row) -> Graded:
    """Grade an answer by the tests of a HumanEval problem.

    It may be the whole function or its body alone; what stands before the function in the prompt is there.
    """
    name, code = problem["entry_point"], code_in(answer, problem["entry_point"])
    # The prompt ends after a docstring, so that it is a function by itself, which the answer replaces.
    between = "\n\n" if re.search(rf"^\s*def {name}\b", code, re.MULTILINE) else ""
    tested = f"\n\ndef is_right():\n    check({name})\n    return True\n"
    called = call_function(problem["prompt"] + between + code + problem["test"] + tested, "is_right", [[]])
    if called.values is None:
        return (malformed if called.failure is Failure.CODE else wrong)(called.detail)
    return RIGHT


def _gsm8k(rng: random.Random, _: Parameters) -> Question:
    """A question of several steps whose answer is one number."""
    case = rng.choice(rows("gsm8k", "cases.jsonl"))
    (expected,) = numbers_in(case["expected"])
    check = text_check(lambda answer: check_number(answer, expected))
    return Question(f"{case['prompt']} {ANSWER_LINE}", check, labels={"question": case["id"]})


def _bfcl(kind: str, rng: random.Random) -> Question:
    """A request that one call of one of the functions on offer answers."""
    asked, answers = rows("bfcl", f"{kind}.jsonl"), rows("bfcl", f"{kind}-answers.jsonl")
    index = rng.randrange(len(asked))
    request, answer = asked[index], answers[index]
    ((message,),) = request["question"]
    functions = request["function"]
    ((name, right),) = answer["ground_truth"][0].items()
    function = next(found for found in functions if found["name"] == name)
    return Question(
        message["content"],
        lambda text, calls: check_call(text, calls, function, right),
        tuple(as_tool(found) for found in functions),
        {"request": request["id"]},
    )


def _bfcl_simple(rng: random.Random, _: Parameters) -> Question:
    return _bfcl("simple", rng)


def _bfcl_multiple(rng: random.Random, _: Parameters) -> Question:
    return _bfcl("multiple", rng)


_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
_PYTHON_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}


def as_tool(function: Row) -> Row:
    """Return a function of the set in the form of the API, which takes JSON types and no dots in names."""
    tool = {**function, "name": _api_name(function["name"]), "parameters": _schema(function["parameters"])}
    return {"type": "function", "function": tool}


def _api_name(name: str) -> str:
    return name.replace(".", "_")


def _schema(schema: Row) -> Row:
    found: dict[str, Any] = {**schema, "type": _JSON_TYPES.get(schema["type"], schema["type"])}
    if "properties" in schema:
        found["properties"] = {name: _schema(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        found["items"] = _schema(schema["items"])
    return found


_WRITTEN = re.compile(r"```(?:json)?\s(.*?)```|<tool_call>(.*?)</tool_call>", re.DOTALL)


def written_calls(answer: str) -> tuple[ToolCall, ...]:
    """Return the calls that a text spells out as JSON: in code fences or tags, else as the whole text.

    Qwen2.5-Coder answers a request with tools by such a fence, which no server takes for a call. A text with
    anything else than objects of a name and arguments in those places has none.
    """
    marked = [fenced or tagged for fenced, tagged in _WRITTEN.findall(answer)]
    found = []
    for text in marked or [answer]:
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            return ()
        match call:
            case {"name": str(name), "arguments": dict(arguments)} if len(call) == 2:
                found.append(ToolCall(name, json.dumps(arguments)))
            case _:
                return ()
    return tuple(found)


def check_call(answer: str, calls: Sequence[ToolCall], function: Row, right: Row) -> Graded:
    """Grade the calls of a reply, or those its text spells out.

    right: of each argument, the values that count, "" for none.
    """
    calls = calls or written_calls(answer)
    if not calls:
        return wrong(f"no tool call but {shown(answer)}") if answer else malformed("an empty answer")
    if len(calls) > 1 or calls[0].name != _api_name(function["name"]):
        called = ", ".join(call.name for call in calls)
        return wrong(f"called {shown(called)}, expected one call of {_api_name(function['name'])}")
    try:
        arguments = json.loads(calls[0].arguments)
    except (ValueError, RecursionError):
        return malformed(f"arguments that are not JSON: {shown(calls[0].arguments)}")
    if not isinstance(arguments, dict):
        return malformed(f"arguments that are no object: {shown(calls[0].arguments)}")
    mistake = mistake_in(arguments, function, right)
    return wrong(mistake) if mistake else RIGHT


def mistake_in(arguments: Row, function: Row, right: Row) -> str:
    """Say what is not right about the arguments of a call, nothing if all is."""
    known = function["parameters"]["properties"]
    for name in function["parameters"]["required"]:
        if name not in arguments:
            return f"without the argument {name}"
    for name, value in arguments.items():
        if name not in known or name not in right:
            return f"an argument that is not asked for: {shown(name)}"
        if not _is_right(value, known[name], right[name]):
            return f"{name} is {shown(json.dumps(value))}, expected {shown(json.dumps(right[name]))}"
    left_out = next((name for name in right if name not in arguments and "" not in right[name]), None)
    return f"without the argument {left_out}" if left_out else ""


def _is_right(value: Any, schema: Row, answers: Sequence[Any]) -> bool:
    kind: Any = _PYTHON_TYPES[schema["type"]]
    inner = _PYTHON_TYPES[schema["items"]["type"]] if schema["type"] in {"array", "tuple"} else None
    if schema["type"] == "float" and type(value) is int:
        value = float(value)
    # Some answers are of another type than the function declares, the name of a variable for a list, say.
    answered = _type_of(answers)
    is_declared = answered in {None, kind}
    if type(value) is not kind:
        if type(value) is not answered:
            return False
        is_declared = False
    elif inner is not None and not any(_items_fit(value, answer, inner) for answer in answers):
        return False
    if not is_declared:
        return value in answers
    if kind is dict:
        return any(_same_object(value, answer) for answer in answers)
    if kind is list and inner is dict:
        return any(len(value) == len(answer) and all(map(_same_object, value, answer)) for answer in answers)
    if kind is list:
        listed = (answer for answer in answers if isinstance(answer, list | str))
        return [_folded(item) for item in value] in [[_folded(item) for item in answer] for answer in listed]
    return _folded(value) in [_folded(answer) for answer in answers]


def _type_of(answers: Sequence[Any]) -> type | None:
    return next((type(answer) for answer in answers if answer != ""), None)


def _items_fit(value: Sequence[Any], answer: Any, inner: type) -> bool:
    return not isinstance(answer, list) or all(type(item) in {inner, _type_of(answer)} for item in value)


def _same_object(value: Any, answer: Any) -> bool:
    """Compare one level of an object; its answer lists, for each key, the values that count."""
    if not isinstance(value, dict) or not isinstance(answer, dict):
        return False
    if any(name not in answer for name in value):
        return False
    if any(name not in value and "" not in listed for name, listed in answer.items()):
        return False
    return all(_folded(item) in [_folded(one) for one in answer[name]] for name, item in value.items())


def _folded(value: Any) -> Any:
    """Return a text without case, blanks and some punctuation, anything else as it is."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')


HUMAN_EVAL = Task("human_eval", "a Python function completed, run by the set's tests", _human_eval)
GSM8K = Task("gsm8k", "arithmetic of several steps", _gsm8k)
BFCL_SIMPLE = Task("bfcl_simple", "a call of the one function on offer", _bfcl_simple, version=2)
BFCL_MULTIPLE = Task(
    "bfcl_multiple", "a call of the right one of several functions", _bfcl_multiple, version=2
)

TASKS = (HUMAN_EVAL, GSM8K, BFCL_SIMPLE, BFCL_MULTIPLE)
