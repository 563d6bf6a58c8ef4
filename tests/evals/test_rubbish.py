"""Whatever a model or an endpoint says becomes an outcome or one line; nothing else is raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvquant.errors import EndpointError
from kvquant.evals.outcome import Outcome
from kvquant.evals.reply import Reply, ToolCall, parse_completion, parse_json, strip_reasoning
from kvquant.evals.task import grade, questions
from kvquant.evals.tasks import TASKS, published

# Pieces that the graders look for, so that what is drawn comes near to an answer.
PIECES = [
    "<think>",
    "</think>",
    "<|channel>thought",
    "<channel|>",
    "<|channel|>analysis",
    "<|message|>",
    "Answer:",
    "```",
    "{",
    "}",
    '"name"',
    ":",
    ",",
    "-",
    '"',
    "**",
    "1e999",
    "NaN",
    "name,age,city",
    "valid",
    "invalid",
    "1,000",
    "1/0",
    "city",
    "é",
    "٣",
]
LONG = ["9" * 5000, "(" * 300, "[" * 2000, "```json\n", "\n", "\0", "\ud800"]
texts = st.lists(st.one_of(st.sampled_from(PIECES + LONG), st.text(max_size=5)), max_size=8).map("".join)
arguments = st.builds(
    lambda key, text: json.dumps({key: text}), st.sampled_from(["query", "expression"]), texts
)
calls = st.lists(
    st.builds(ToolCall, st.sampled_from(["web_search", "calculator", ""]), st.one_of(texts, arguments)),
    max_size=2,
).map(tuple)
documents: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "tool_calls", "function", "name", "arguments", "usage"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)

PUBLISHED = {task.name for task in published.TASKS}
NOT_RUN = sorted(set(TASKS) - PUBLISHED - {"list_comprehension", "palindrome"})


@pytest.mark.parametrize("name", NOT_RUN)
@settings(max_examples=30)
@given(texts, calls)
def test_any_reply_has_an_outcome(name: str, text: str, tool_calls: tuple[ToolCall, ...]) -> None:
    question = questions(TASKS[name], 1, 0, name, {})[0]
    graded = grade(question, Reply(text, tool_calls))
    assert isinstance(graded.outcome, Outcome)
    assert "\n" not in graded.detail
    json.dumps(graded.detail)


@given(texts)
def test_stripping_twice_changes_nothing(text: str) -> None:
    once = strip_reasoning(text)
    if once is not None and "<" not in once:
        assert strip_reasoning(once) == once


@given(documents)
def test_any_document_is_a_completion_or_an_endpoint_error(document: Any) -> None:
    try:
        reply = parse_completion(document)
    except EndpointError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(reply.text, str)
        assert all(isinstance(call.arguments, str) for call in reply.tool_calls)


@given(st.binary(max_size=30))
def test_any_bytes_are_json_or_an_endpoint_error(data: bytes) -> None:
    try:
        found = parse_json(data)
    except EndpointError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("data", [b"NaN", b'{"a": Infinity}', b"[" * 10**5, b"1" * 5000, b"\xff\xfe\x00"])
def test_bytes_that_trip_the_parser(data: bytes) -> None:
    with pytest.raises(EndpointError, match="not JSON"):
        parse_json(data)


def test_arguments_sent_as_an_object() -> None:
    call = {"function": {"name": "calculator", "arguments": {"expression": "1+1"}}}
    reply = parse_completion({"choices": [{"message": {"content": None, "tool_calls": [call]}}]})
    assert reply == Reply("", (ToolCall("calculator", '{"expression": "1+1"}'),))


def message(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", **fields}, "finish_reason": "stop"}]}


def part(kind: str, text: str) -> dict[str, str]:
    return {"type": kind, "text": text}


@pytest.mark.parametrize(
    ("fields", "text", "reasoning"),
    [
        ({"content": "a"}, "a", ""),
        ({"content": None}, "", ""),
        ({}, "", ""),
        ({"content": [part("text", "a"), part("text", "b")]}, "ab", ""),
        ({"content": ["a", part("output_text", "b")]}, "ab", ""),
        ({"content": []}, "", ""),
        ({"content": [part("text", "a"), {"type": "image_url", "image_url": {"url": "x"}}]}, "a", ""),
        ({"content": [{"type": "thinking", "thinking": "hm"}, part("text", "a")]}, "a", "hm"),
        ({"content": [part("reasoning", "hm"), part("text", "a")]}, "a", "hm"),
        ({"content": "a", "reasoning_content": "hm"}, "a", "hm"),
        ({"content": "", "reasoning": "hm"}, "", "hm"),
        ({"content": "a", "reasoning_content": None, "reasoning": {"effort": 1}}, "a", ""),
        ({"content": None, "refusal": "I can't help with that."}, "I can't help with that.", ""),
    ],
)
def test_text_and_reasoning_are_found_wherever_they_stand(
    fields: dict[str, Any], text: str, reasoning: str
) -> None:
    reply = parse_completion(message(**fields))
    assert (reply.text, reply.reasoning) == (text, reasoning)


@pytest.mark.parametrize("content", [3, {"text": "a"}, [3], [{"text": "a"}], [None]])
def test_content_of_another_form_is_no_completion(content: object) -> None:
    with pytest.raises(EndpointError, match="not a chat completion"):
        parse_completion(message(content=content))


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (Reply("", reasoning="It is 4."), Outcome.REASONING_ONLY),
        (Reply(" \n", finish_reason="stop", reasoning="It is 4."), Outcome.REASONING_ONLY),
        (Reply("<think>It is 4.</think>\n"), Outcome.REASONING_ONLY),
        (Reply("<think>It is 4.</think>I'm sorry."), Outcome.REFUSAL),
        (Reply("", finish_reason="length", reasoning="It is"), Outcome.TRUNCATED),
        (Reply("<think>It is", finish_reason="stop"), Outcome.TRUNCATED),
        (Reply("", reasoning=" "), Outcome.MALFORMED),
        (Reply(""), Outcome.MALFORMED),
        (Reply("", (ToolCall("x", "{}"),), reasoning="hm"), Outcome.MALFORMED),
        (Reply("no number", reasoning="It is 4."), Outcome.MALFORMED),
    ],
)
def test_reasoning_without_an_answer_has_a_name(reply: Reply, outcome: Outcome) -> None:
    question = questions(TASKS["bat_and_ball"], 1, 0, "x", {})[0]
    assert grade(question, reply).outcome is outcome
