"""What another project's server has answered, kept as it came: llama-cpp-python 0.3.36 with SmolLM2-135M."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evals.fake_endpoint import Sent, fake_endpoint
from kvquant.evals.endpoint import Endpoint, EndpointFailed, EndpointRefused
from kvquant.evals.records import FILE_NAME, SampleRecord, read_run
from kvquant.evals.reply import Reply, ToolCall
from kvquant.evals.suite import load_suite, samples
from kvquant.evals.task import grade

RECORDED = Path(__file__).with_name("recorded")
ANSWERS: list[dict[str, Any]] = json.loads((RECORDED / "llama-cpp-python.json").read_text())


@pytest.mark.parametrize("recorded", ANSWERS, ids=lambda recorded: recorded["asked"])
def test_its_answers_mean_what_they_say(recorded: dict[str, Any]) -> None:
    with fake_endpoint(Sent(recorded["status"], recorded["body"])) as server:
        endpoint = Endpoint(server.url, 10)
        if recorded["means"] == "answer":
            reply = endpoint.chat("smollm2-135m", "What is 2+2?", (), 32, 0)
            assert reply == Reply("The answer to this classic math problem is 4.", (), "stop", 37, 11)
            return
        kind = EndpointRefused if recorded["means"] == "refused" else EndpointFailed
        with pytest.raises(kind, match=f"HTTP status {recorded['status']}"):
            endpoint.chat("smollm2-135m", "What is 2+2?", (), 32, 0)


def test_its_run_of_the_agent_suite_is_read_and_graded_as_it_was(tmp_path: Path) -> None:
    shutil.copyfile(RECORDED / "llama-cpp-python-agent.jsonl", tmp_path / FILE_NAME)
    run, suite = read_run(tmp_path), load_suite("agent")
    assert run.info.suite_digest == suite.digest and len(run.samples) == 12 and not run.unanswered
    questions = {sample.id: sample.question for sample in samples(suite, 2, 0)}
    for record in run.samples:
        graded = grade(questions[record.id], replied(record))
        assert (graded.outcome, graded.detail) == (record.outcome, record.detail), record.id


def replied(record: SampleRecord) -> Reply:
    """The reply that a record was made of."""
    calls = tuple(ToolCall(name, arguments) for name, arguments in record.tool_calls)
    return Reply(record.answer, calls, record.finish_reason, reasoning=record.reasoning)
