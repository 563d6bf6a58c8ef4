"""Failures of an endpoint: which are asked again, for how long, and what becomes of a run meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity
from hypothesis import example, given
from hypothesis import strategies as st

from evals.fake_endpoint import LOADING, Behaviour, Sent, error, fake_endpoint
from evals.small_runs import failure, outcomes, run, write_suite
from kvquant.errors import EndpointError, UsageError
from kvquant.evals.endpoint import (
    Endpoint,
    EndpointFailed,
    EndpointRefused,
    EndpointTimeout,
    EndpointUnreachable,
)
from kvquant.evals.outcome import Outcome
from kvquant.evals.patience import (
    LOADING_SECONDS,
    LONGEST_PAUSE_SECONDS,
    RETRY_AFTER_SECONDS,
    Patience,
)
from kvquant.evals.records import FILE_NAME, read_run

PASSING: dict[str, str | Sent] = {
    "connection closed": "crash",
    "connection reset": "reset",
    "cut answer": "cut",
    "no JSON": "rubbish",
    "no object": "list",
    "no choice": "empty",
    "an error with status 200": Sent(200, {"error": {"message": "upstream failed"}}),
    **{str(status): error(status, "not now") for status in (408, 425, 429, 500, 502, 503, 504, 529)},
    "429 with a pause": error(429, "Rate limit reached for requests", Retry_After="1"),
    "a page of a proxy": Sent(502, b"<html><body>Bad gateway</body></html>"),
    "loading": LOADING,
    "loading, in other words": error(503, "Model small is currently loading"),
}
LASTING: dict[str, tuple[Sent, str]] = {
    "400": (error(400, "unsupported parameter"), "unsupported parameter; change what it names"),
    "400 context": (error(400, "the request exceeds the available context size"), "larger context"),
    "401": (error(401, "Invalid API Key"), "set OPENAI_API_KEY"),
    "403": (error(403, "not yours"), "set OPENAI_API_KEY"),
    "404": (Sent(404, {"error": "model 'x' not found"}), "model 'x' not found; check --base-url and --model"),
    "405": (Sent(405, {"detail": "Method Not Allowed"}), "Method Not Allowed; check --base-url"),
    "413": (Sent(413, b"too large"), "HTTP status 413: too large"),
    "422": (Sent(422, {"detail": [{"loc": ["body"], "msg": "missing"}]}), '"msg": "missing"'),
    "501": (error(501, "not supported"), "not supported"),
    "308": (Sent(308, b"", {"Location": "http://127.0.0.1:1/other"}), "sends on to http://127.0.0.1:1/other"),
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path)


@contextmanager
def no_pauses() -> Iterator[list[float]]:
    """Let every pause pass at once; they are listed, in seconds."""
    pauses: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenacity.nap.time", SimpleNamespace(sleep=pauses.append))
        yield pauses


@pytest.fixture
def pauses() -> Iterator[list[float]]:
    with no_pauses() as found:
        yield found


def at(numbers: set[int], what: str | Sent) -> Behaviour:
    """Right answers, except to these requests."""
    return lambda asked, _prompt: what if asked in numbers else "right"


def prompts_of(suite: Path) -> list[str]:
    """The prompts of the suite in order."""
    with fake_endpoint() as server:
        result = run(server.url, suite, "--out", str(suite.parent / "once"))
        assert result.exit_code == 0
        return server.prompts


@pytest.mark.parametrize("what", PASSING.values(), ids=PASSING)
def test_a_failure_that_passes_costs_a_pause_and_no_sample(
    suite: Path, what: str | Sent, pauses: list[float]
) -> None:
    with fake_endpoint(at({3, 7, 8}, what)) as server:
        result = run(server.url, suite)
    assert result.exit_code == 0, result.output
    assert outcomes(suite) == [Outcome.RIGHT] * 8
    assert len(server.prompts) == 11 and len(pauses) == 3
    assert not read_run(suite.parent / "out").unanswered


@pytest.mark.parametrize("what", [error(503, "busy"), LOADING, error(429, "slow down", Retry_After="2")])
def test_the_list_of_models_is_waited_for(suite: Path, what: Sent, pauses: list[float]) -> None:
    answers = iter([what, what, ["fake"]])

    def models() -> Any:
        found = next(answers)
        return found if isinstance(found, Sent) else Sent(200, {"data": [{"id": "fake"}]})

    with fake_endpoint(models=models) as server:
        assert run(server.url, suite).exit_code == 0
    assert len(pauses) == 2


@pytest.mark.parametrize("what", PASSING.values(), ids=PASSING)
def test_a_failure_that_stays_leaves_its_sample_to_the_next_run(
    suite: Path, what: str | Sent, pauses: list[float]
) -> None:
    bad = prompts_of(suite)[2]
    with fake_endpoint(lambda _number, prompt: what if prompt == bad else "right") as server:
        message = failure(run(server.url, suite, "--retry-for", "20"), EndpointError)
    assert message.startswith("1 of 8 samples are unanswered, last: ")
    assert message.endswith("run the same command again to ask them again")
    found = read_run(suite.parent / "out")
    assert len(found.samples) == 7 and [record.outcome for record in found.unanswered] == [Outcome.ERROR]
    assert server.prompts.count(bad) == len(pauses) + 1 > 2
    with fake_endpoint() as again:
        assert run(again.url, suite).exit_code == 0
    assert again.prompts == [bad]
    found = read_run(suite.parent / "out")
    assert [record.outcome for record in found.samples] == [Outcome.RIGHT] * 8 and not found.unanswered


@pytest.mark.usefixtures("pauses")
def test_unanswered_samples_are_shown_and_not_counted(suite: Path) -> None:
    bad = prompts_of(suite)[0]
    with fake_endpoint(lambda _number, prompt: error(500, "no") if prompt == bad else "wrong") as server:
        text = run(server.url, suite).stdout
        document = json.loads(run(server.url, suite, "--json").stdout)
    assert [line.split() for line in text.splitlines()][2][:3] == ["math", "3", "0"]
    assert "3 wrong, 1 unanswered" in text
    math = document["summary"][0]
    assert (math["n"], math["rate"], math["outcomes"]["error"]) == (3, 0.0, 1)


def test_an_endpoint_that_fails_for_good_ends_the_run_within_the_limit(
    suite: Path, pauses: list[float]
) -> None:
    broken: Behaviour = lambda number, _prompt: "right" if number < 3 else error(503, "overloaded")  # noqa: E731
    with fake_endpoint(broken) as server:
        message = failure(run(server.url, suite, "--retry-for", "60"), EndpointError)
    assert "failed 5 times in a row, last: HTTP status 503: overloaded; 2 of 8 samples are kept" in message
    assert 20 < sum(pauses) <= 60
    # One sample takes the whole limit; those after it are asked once.
    assert len(server.prompts) == 2 + (len(pauses) + 1) + 4
    with fake_endpoint() as again:
        assert run(again.url, suite).exit_code == 0
    assert len(again.prompts) == 6


def test_a_limit_of_0_asks_once(suite: Path, pauses: list[float]) -> None:
    with fake_endpoint(at({3}, LOADING)) as server:
        assert "1 of 8 samples" in failure(run(server.url, suite, "--retry-for", "0"), EndpointError)
    assert pauses == [] and len(server.prompts) == 8


@pytest.mark.parametrize(("what", "advice"), LASTING.values(), ids=LASTING)
@pytest.mark.parametrize("number", [1, 4])
def test_a_refusal_ends_the_run_at_once_and_is_no_sample(
    suite: Path, what: Sent, advice: str, number: int, pauses: list[float]
) -> None:
    with fake_endpoint(at({number}, what)) as server:
        message = failure(run(server.url, suite), EndpointRefused)
        assert f"HTTP status {what.status}" in message and advice in message
        assert message.endswith(f"{number - 1} of 8 samples are kept")
        assert pauses == [] and len(server.prompts) == number
        if number == 1:
            assert not (suite.parent / "out" / FILE_NAME).exists()
        else:
            found = read_run(suite.parent / "out")
            assert (len(found.samples), len(found.unanswered)) == (number - 1, 0)
        assert run(server.url, suite).exit_code == 0
    assert outcomes(suite) == [Outcome.RIGHT] * 8


@pytest.mark.parametrize("path", ["", "/", "/api"])
def test_a_url_without_its_version_is_named_and_leaves_nothing(suite: Path, path: str) -> None:
    with fake_endpoint() as server:
        wrong = server.url.removesuffix("/v1") + path
        assert "should end in /v1" in failure(run(wrong, suite), UsageError)
        message = failure(run(wrong, suite, "--model", "fake"), EndpointRefused)
        assert f"should end in /v1: --base-url {wrong.rstrip('/')}/v1" in message
        assert not (suite.parent / "out" / FILE_NAME).exists()
        assert run(server.url, suite, "--model", "fake").exit_code == 0


def test_an_endpoint_that_is_started_again_is_waited_for(pauses: list[float]) -> None:
    calls: list[int] = []

    def chat() -> str:
        calls.append(1)
        if len(calls) in {2, 3}:
            raise EndpointUnreachable("refused")
        return "answer"

    patience = Patience(60)
    assert [patience.ask(chat), patience.ask(chat)] == ["answer", "answer"]
    assert len(pauses) == 2
    # One that was never there is not.
    with pytest.raises(EndpointUnreachable):
        Patience(60).ask(_raising([EndpointUnreachable("refused")]))
    assert len(pauses) == 2


def test_an_answer_that_the_server_itself_cannot_read_is_the_model_s(
    suite: Path, pauses: list[float]
) -> None:
    words = "The model produced output that does not match the expected Hermes 2 Pro format"
    with fake_endpoint(at({2}, error(500, words))) as server:
        assert run(server.url, suite).exit_code == 0
    found = read_run(suite.parent / "out")
    assert (found.samples[1].outcome, found.samples[1].detail) == (Outcome.MALFORMED, words)
    assert not pauses


# The pauses themselves.

failures = st.builds(
    lambda after, loading: EndpointFailed("x", retry_after=after, is_loading=loading),
    st.one_of(st.none(), st.floats(0, 1e6), st.just(0.0), st.just(RETRY_AFTER_SECONDS)),
    st.booleans(),
)


def _raising(errors: list[Any]) -> Callable[[], str]:
    left = iter(errors)

    def call() -> str:
        found = next(left, None)
        if found is not None:
            raise found
        return "answer"

    return call


@given(st.lists(failures, max_size=60), st.floats(0, 300))
@example([], 0.0)
@example([EndpointFailed("x")] * 60, 300.0)
@example([EndpointFailed("x", is_loading=True)] * 60, 0.5)
def test_pauses_grow_within_the_limit(errors: list[EndpointFailed], limit: float) -> None:
    check_pauses(Patience, errors, limit)


def check_pauses(kind: Callable[[float], Patience], errors: list[EndpointFailed], limit: float) -> None:
    with no_pauses() as pauses:
        try:
            assert kind(limit).ask(_raising(errors)) == "answer"
        except EndpointFailed as failed:
            assert failed in errors
        else:
            assert len(pauses) == len(errors)
    most = max(limit, LOADING_SECONDS) if limit and any(e.is_loading for e in errors) else limit
    assert sum(pauses) <= most + 1e-6
    for number, (pause, seen) in enumerate(zip(pauses, errors, strict=False)):
        asked = min(seen.retry_after or 0.0, RETRY_AFTER_SECONDS)
        assert asked <= pause <= max(asked, LONGEST_PAUSE_SECONDS + 0.25)
        if not seen.is_loading:
            assert pause >= min(0.5 * 2**number, LONGEST_PAUSE_SECONDS)


class _Hasty(Patience):
    """Waits as it likes."""

    def ask(self, call: Callable[[], Any]) -> Any:
        retrying = tenacity.Retrying(
            wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_attempt(9), reraise=True
        )
        return retrying(call)


@pytest.mark.parametrize(
    "errors", [[EndpointFailed("x", retry_after=40.0)], [EndpointFailed("x")] * 5, [EndpointFailed("x")] * 20]
)
def test_the_check_of_pauses_can_fail(errors: list[EndpointFailed]) -> None:
    with pytest.raises(AssertionError):
        check_pauses(_Hasty, errors, 3.0)


def test_a_time_out_is_not_asked_again(pauses: list[float]) -> None:
    with pytest.raises(EndpointTimeout):
        Patience(60).ask(_raising([EndpointTimeout("no answer")]))
    assert not pauses


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7, 7),
        ("2.5", 2.5, 2.5),
        ("86400", 86400, 86400),
        ("tomorrow", 86000, 86400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("-1", None, None),
        ("soon", None, None),
        ("9" * 400, None, None),
        ("", None, None),
    ],
)
def test_the_header_retry_after(header: str, least: float | None, most: float | None) -> None:
    if header == "tomorrow":
        header = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)
    with fake_endpoint(error(429, "slow down", Retry_After=header)) as server:
        endpoint = Endpoint(server.url, 10)
        with pytest.raises(EndpointFailed) as raised:
            endpoint.chat("fake", "hello", (), 1, 0)
    found = raised.value.retry_after
    assert found is least if least is None else found is not None and least <= found <= most
