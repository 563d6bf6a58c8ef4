"""Running a suite against an endpoint, one sample after the other, each recorded when it is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from kvquant.errors import EndpointError
from kvquant.evals.endpoint import Endpoint, EndpointFailed, EndpointRefused, EndpointTimeout, ServedModel
from kvquant.evals.machine import read_machine
from kvquant.evals.outcome import Graded, Outcome
from kvquant.evals.patience import Patience
from kvquant.evals.records import CountedTest, RunInfo, RunLog, SampleRecord
from kvquant.evals.reply import Reply
from kvquant.evals.suite import Sample, Suite
from kvquant.evals.task import grade
from kvquant.llama.workspace import tree_commit
from kvquant.shipped import VERSION, checkout_root

ERRORS_IN_A_ROW = 5
"""So many samples left unanswered one after the other end the run: the endpoint does not work."""

_AGAIN = "run the same command again"


def run_info(
    suite: Suite, n: int, seed: int, model: ServedModel, base_url: str, argv: Sequence[str]
) -> RunInfo:
    """Describe a run that starts now, on this machine."""
    root = checkout_root()
    return RunInfo(
        suite=suite.name,
        suite_digest=suite.digest,
        seed=seed,
        n=n,
        model=model.name,
        model_report=model.report,
        base_url=base_url,
        tests=tuple(CountedTest(test.name, test.category, test.weight) for test in suite.tests),
        argv=tuple(argv),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        kvquant_version=VERSION,
        git_commit=None if root is None else tree_commit(root),
        machine=asdict(read_machine()),
        rules=suite.rules,
    )


def run_samples(
    samples: Sequence[Sample],
    endpoint: Endpoint,
    info: RunInfo,
    max_tokens: int,
    patience: Patience,
    log: RunLog,
    on_sample: Callable[[SampleRecord], None],
) -> None:
    """Ask every sample that is not finished yet.

    A time-out is that sample's outcome; a sample on which the endpoint fails for longer than ``patience``
    stays unanswered. Raises EndpointError when the endpoint is gone, refuses what it is asked, or leaves
    ERRORS_IN_A_ROW samples unanswered running; every answer is recorded by then.
    """
    n_errors = 0
    for sample in samples:
        if sample.id in log.finished:
            continue
        try:
            record = ask(sample, endpoint, info, max_tokens, patience)
        except EndpointRefused as error:
            raise EndpointRefused(f"{error}; {_kept(log, samples)}") from error
        except EndpointError as error:
            raise EndpointError(f"{error}; {_kept(log, samples)}, {_AGAIN} to go on") from error
        log.append(record)
        on_sample(record)
        n_errors = n_errors + 1 if record.outcome is Outcome.ERROR else 0
        if n_errors == ERRORS_IN_A_ROW:
            failed = f"{endpoint.base_url} failed {n_errors} times in a row"
            raise EndpointError(f"{failed}, last: {record.detail}; {_kept(log, samples)}, {_AGAIN} to go on")


def ask(
    sample: Sample, endpoint: Endpoint, info: RunInfo, max_tokens: int, patience: Patience
) -> SampleRecord:
    """Ask one sample and grade the answer. Raises EndpointError where asking anything more is no use."""
    question = sample.question
    reply = Reply("")
    start = time.monotonic()

    def once() -> Reply:
        nonlocal start
        start = time.monotonic()
        return endpoint.chat(info.model, question.prompt, question.tools, max_tokens, info.seed)

    try:
        reply = patience.ask(once)
        wall_seconds = time.monotonic() - start
        graded = grade(question, reply)
    except (EndpointTimeout, EndpointFailed) as error:
        wall_seconds = time.monotonic() - start
        outcome = Outcome.TIMEOUT if isinstance(error, EndpointTimeout) else Outcome.ERROR
        graded = Graded(outcome, str(error))
    return SampleRecord(
        id=sample.id,
        test=sample.test.name,
        category=sample.test.category,
        outcome=graded.outcome,
        detail=graded.detail,
        wall_seconds=round(wall_seconds, 6),
        answer=reply.text,
        tool_calls=tuple((call.name, call.arguments) for call in reply.tool_calls),
        finish_reason=reply.finish_reason,
        n_prompt_tokens=reply.n_prompt_tokens,
        n_completion_tokens=reply.n_completion_tokens,
        labels=question.labels,
        reasoning=reply.reasoning,
    )


def _kept(log: RunLog, samples: Sequence[Sample]) -> str:
    done = sum(sample.id in log.finished for sample in samples)
    return f"{done} of {len(samples)} samples are kept"
