"""Keys come from the environment, go to the endpoint, and stand nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.fake_endpoint import fake_endpoint
from evals.small_runs import failure, outcomes, run, write_suite
from kvquant.cli.eval import _key
from kvquant.errors import UsageError
from kvquant.evals.endpoint import ApiKey, EndpointRefused, plain_url
from kvquant.evals.outcome import Outcome


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path)


SECRET = "sk-SECRET-0123456789"


def everything(suite: Path) -> str:
    """All that a run has written."""
    return "".join(path.read_text() for path in sorted((suite.parent / "out").rglob("*")) if path.is_file())


@pytest.mark.parametrize("variable", [None, "MY_KEY"])
def test_a_key_from_the_environment(
    suite: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    monkeypatch.setenv(variable or "OPENAI_API_KEY", f"{SECRET}\n")
    more = ["--api-key-env", variable] if variable else []
    with fake_endpoint(key=SECRET) as server:
        result = run(server.url, suite, *more)
    assert result.exit_code == 0, result.output
    assert outcomes(suite) == [Outcome.RIGHT] * 8
    assert set(server.keys) == {f"Bearer {SECRET}"}
    assert SECRET not in result.output and SECRET not in everything(suite)


def test_a_wrong_key_is_refused_and_shown_nowhere(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with fake_endpoint(key="another") as server:
        message = failure(run(server.url, suite), EndpointRefused)
    assert "Incorrect API key provided" in message and "the key in OPENAI_API_KEY is not" in message
    assert SECRET not in message


def test_an_endpoint_that_wants_a_key_says_which_variable(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with fake_endpoint(key=SECRET) as server:
        message = failure(run(server.url, suite), EndpointRefused)
    assert "set OPENAI_API_KEY to its key, or name another variable with --api-key-env" in message


@pytest.mark.parametrize(
    ("url", "is_sent"),
    [
        ("https://api.example.org/v1", True),
        ("http://127.0.0.1:8080/v1", True),
        ("http://[::1]:8080/v1", True),
        ("http://localhost/v1", True),
        ("http://api.example.org/v1", False),
        ("http://192.168.1.7:8080/v1", False),
        ("http://localhost.example.org/v1", False),
    ],
)
def test_the_common_variable_is_not_sent_in_the_clear_to_another_machine(
    url: str, is_sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    key = ApiKey("OPENAI_API_KEY", SECRET)
    assert _key(plain_url(url), None) == (key if is_sent else None)
    assert _key(plain_url(url), "OPENAI_API_KEY") == key
    assert SECRET not in repr(key)


@pytest.mark.parametrize("value", ["two\nlines", "schlüssel", "a\x7fb"])
def test_a_key_that_no_header_can_hold(value: str, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", value)
    message = failure(run("http://127.0.0.1:9/v1", suite, "--api-key-env", "MY_KEY"), UsageError)
    assert "characters that an HTTP header cannot carry" in message and value not in message


def test_a_variable_that_is_not_set(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    message = failure(run("http://127.0.0.1:9/v1", suite, "--api-key-env", "MY_KEY"), UsageError)
    assert message == "--api-key-env MY_KEY: that variable is not set; export it first"


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@127.0.0.1:1/v1",
        f"http://{SECRET}@127.0.0.1:1/v1",
        f"https://127.0.0.1:1/v1?key={SECRET}",
        f"http://127.0.0.1:1/v1#{SECRET}",
        f"http://user:{SECRET}@[/v1",
    ],
)
def test_a_url_that_holds_a_secret_is_refused_and_not_repeated(suite: Path, url: str) -> None:
    message = failure(run(url, suite, "--model", "x"), UsageError)
    assert SECRET not in message and "--base-url" in message
    assert not (suite.parent / "out").exists()
