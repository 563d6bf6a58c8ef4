"""`kvquant eval`: every way an endpoint can answer or fail, and what is on the disk after each."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from command_line import KVQUANT
from evals.fake_endpoint import Behaviour, fake_endpoint
from evals.processes import fill_disk
from evals.small_runs import failure, outcomes, run, write_suite
from kvquant.cli.main import kvquant
from kvquant.errors import EndpointError, KVQuantError, UsageError
from kvquant.evals.outcome import Outcome
from kvquant.evals.records import FILE_NAME, open_log, read_run


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path)


def test_a_model_that_is_always_right(suite: Path) -> None:
    with fake_endpoint() as server:
        result = run(server.url, suite, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [(s["category"], s["n"], s["rate"]) for s in document["summary"]] == [
        ("math", 4, 1.0),
        ("tools", 4, 1.0),
        ("total", 8, 1.0),
    ]
    low, high = document["summary"][2]["interval"]
    assert 0.6 < low < 0.7 and high == 1.0
    info = document["run"]
    assert (info["model"], info["seed"], info["suite"]) == ("fake", 0, "small")
    assert info["model_report"] == {"id": "fake"}
    assert len(info["suite_digest"]) == 64 and info["kvquant_version"] and info["machine"]["kernel"]
    with_tools = [body for body in server.bodies if "tools" in body]
    assert len(with_tools) == 4
    assert {tool["function"]["name"] for tool in with_tools[0]["tools"]} == {"web_search", "calculator"}
    assert server.bodies[0]["temperature"] == 0


def test_the_agent_suite_end_to_end(tmp_path: Path) -> None:
    with fake_endpoint() as server:
        arguments = ["eval", "--base-url", server.url, "--n", "3", "--out", str(tmp_path / "out"), "--json"]
        document = json.loads(CliRunner().invoke(kvquant, arguments).stdout)
    assert document["summary"][-1]["rate"] == 1.0
    assert document["summary"][-1]["n"] == 18


@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        ("wrong", {Outcome.WRONG}),
        ("refuse", {Outcome.REFUSAL}),
        ("nothing", {Outcome.MALFORMED}),
        ("thinking", {Outcome.REASONING_ONLY}),
        ("length", {Outcome.TRUNCATED}),
    ],
)
def test_outcomes_are_told_apart(suite: Path, what: str, outcome: set[Outcome]) -> None:
    with fake_endpoint(what) as server:
        result = run(server.url, suite)
    assert result.exit_code == 0, result.output
    assert set(outcomes(suite)) == outcome
    assert f"8 {outcome.pop()}" in result.stdout
    assert ("turn thinking off" in result.stderr) == (what == "thinking")
    if what == "thinking":
        assert {sample.reasoning for sample in read_run(suite.parent / "out").samples} == {"Let me see."}


def at(number: int, what: str) -> Behaviour:
    """Right answers, except to one request."""
    return lambda asked, _prompt: what if asked == number else "right"


@pytest.mark.parametrize("what", ["hang", "drip"])
def test_a_hang_is_a_time_out_and_the_run_goes_on(suite: Path, what: str) -> None:
    with fake_endpoint(at(2, what)) as server:
        assert run(server.url, suite, "--timeout", "1").exit_code == 0
    found = outcomes(suite)
    assert found[1] is Outcome.TIMEOUT
    assert found.count(Outcome.RIGHT) == 7


def test_an_endpoint_that_goes_away_loses_nothing(suite: Path) -> None:
    with fake_endpoint() as server:
        url = server.url

        def leave(number: int, _prompt: str) -> str:
            if number == 3:
                server.socket.shutdown(socket.SHUT_RDWR)
            return "right"

        server.behaviour = leave
        message = failure(run(url, suite, "--retry-for", "0"), EndpointError)
        assert "cannot be reached" in message and "3 of 8 samples are kept" in message
    with fake_endpoint() as again:
        assert run(again.url, suite).exit_code == 0
    assert outcomes(suite) == [Outcome.RIGHT] * 8
    assert len(again.prompts) == 5


def test_nobody_listens(suite: Path) -> None:
    with fake_endpoint() as server:
        url = server.url
    assert "cannot be reached: Connection refused" in failure(run(url, suite), EndpointError)
    assert not (suite.parent / "out").exists()


@pytest.mark.parametrize(
    ("models", "asked", "message"),
    [
        (("a", "b"), None, "serves 2 models; choose with --model: a, b"),
        ((), None, "serves 0 models; choose with --model: none"),
        (("a",), "b", "serves no model 'b'; it serves: a"),
        (None, None, "does not list its models; name one with --model"),
    ],
)
def test_the_wrong_model(suite: Path, models: Any, asked: str | None, message: str) -> None:
    with fake_endpoint(models=models) as server:
        assert message in failure(run(server.url, suite, *(["--model", asked] if asked else [])), UsageError)


def test_a_list_of_models_that_is_none(suite: Path) -> None:
    with fake_endpoint(models={"models": []}) as server:
        assert "does not answer with a list of models" in failure(run(server.url, suite), EndpointError)


def test_an_endpoint_without_a_list_of_models(suite: Path) -> None:
    with fake_endpoint(models=None) as server:
        assert run(server.url, suite, "--model", "x").exit_code == 0
        assert server.bodies[0]["model"] == "x"


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x/v1", "http://", "http://[", "http://x:y/v1", ""])
def test_what_is_no_url(suite: Path, url: str) -> None:
    assert "give a URL such as" in failure(run(url, suite), UsageError)


def test_dry_run_asks_nothing(suite: Path) -> None:
    result = run("http://127.0.0.1:9/v1", suite, "--dry-run", "--timeout", "90")
    assert result.exit_code == 0
    assert "8 samples, 0 of them finished" in result.stdout
    assert "  math: two such runs show a change of 31.3 points or more" in result.stdout
    assert "at most 0:12:00 at 90 s a sample" in result.stdout
    assert not (suite.parent / "out").exists()
    with fake_endpoint() as server:
        run(server.url, suite)
    assert "8 samples, 8 of them finished" in run("http://127.0.0.1:9/v1", suite, "--dry-run").stdout


def test_a_larger_n_adds_samples(suite: Path) -> None:
    with fake_endpoint() as server:
        run(server.url, suite, "--n", "2")
        assert len(server.prompts) == 4
        run(server.url, suite, "--n", "5")
        assert len(server.prompts) == 10
        assert len(set(server.prompts)) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--seed", "1"], "another seed \\(0, now 1\\)"),
        (["--model", "other"], "another model"),
        (["--suite", "agent"], "another suite"),
    ],
)
def test_a_folder_holds_one_run(suite: Path, changes: list[str], message: str) -> None:
    with fake_endpoint(models=("fake", "other")) as server:
        assert run(server.url, suite, "--model", "fake").exit_code == 0
        before = (suite.parent / "out" / FILE_NAME).read_bytes()
        result = run(server.url, suite, "--model", "fake", *changes)
    with pytest.raises(UsageError, match=message):
        raise result.exception or AssertionError
    assert (suite.parent / "out" / FILE_NAME).read_bytes() == before


def test_a_run_of_the_first_version_goes_on_and_its_errors_are_asked_again(suite: Path) -> None:
    out = suite.parent / "out"
    out.mkdir()
    recorded = Path(__file__).with_name("recorded") / "samples-0.1.0.jsonl"
    (out / FILE_NAME).write_bytes(recorded.read_bytes())
    before = read_run(out)
    assert (len(before.samples), before.info.rules) == (6, None)
    assert [record.id for record in before.unanswered] == ["calculator/0", "speed_distance/2"]
    with fake_endpoint() as server:
        assert run(server.url, suite).exit_code == 0
    assert len(server.prompts) == 2
    after = read_run(out)
    assert after.samples[:6] == before.samples and not after.unanswered
    assert [record.outcome for record in after.samples].count(Outcome.RIGHT) == 7
    assert after.info.rules is not None and after.info.rules.safe_loss == 0.05


def test_two_runs_in_one_folder_are_refused(suite: Path) -> None:
    with fake_endpoint() as server:
        run(server.url, suite)
        out = suite.parent / "out"
        with open_log(out, read_run(out).info):
            assert "another kvquant is running in" in failure(run(server.url, suite), UsageError)
        assert run(server.url, suite).exit_code == 0


def test_a_torn_last_line_is_repeated_and_a_damaged_one_is_named(suite: Path) -> None:
    with fake_endpoint() as server:
        run(server.url, suite)
        path = suite.parent / "out" / FILE_NAME
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        assert len(read_run(path.parent).samples) == 7
        run(server.url, suite)
        assert len(server.prompts) == 9
        assert outcomes(suite) == [Outcome.RIGHT] * 8
        lines = path.read_bytes().splitlines(keepends=True)
        for damage in (
            b"\0" * 30 + b"\n",
            b"[]\n",
            lines[3][:50] + b"\n",
            lines[3].replace(b'"right"', b'"rihgt"'),
        ):
            path.write_bytes(b"".join([*lines[:3], damage, *lines[4:]]))
            message = failure(run(server.url, suite), KVQuantError)
            assert "line 4 is damaged; remove that line" in message


def test_a_file_of_a_later_version_is_refused_and_its_new_fields_are_passed_over(suite: Path) -> None:
    with fake_endpoint() as server:
        run(server.url, suite)
        path = suite.parent / "out" / FILE_NAME
        text = path.read_text()
        path.write_text(text.replace('"kind": "sample"', '"kind": "sample", "new": 1'))
        assert run(server.url, suite).exit_code == 0
        path.write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
        assert "schema version 2, this kvquant reads 1" in failure(run(server.url, suite), KVQuantError)


def test_a_full_disk_keeps_what_is_measured(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, at_call=4)
    with fake_endpoint() as server:
        message = failure(run(server.url, suite), KVQuantError)
        assert "No space left on device; the 2 samples before this are kept" in message
        monkeypatch.undo()
        assert run(server.url, suite).exit_code == 0
    assert outcomes(suite) == [Outcome.RIGHT] * 8


def test_kill_9_loses_no_finished_sample_and_a_resumed_run_repeats_none(suite: Path) -> None:
    out = suite.parent / "out"
    with fake_endpoint(at(5, "hang")) as server:
        command = [*KVQUANT, "eval", "--base-url", server.url]
        program = subprocess.Popen(
            [*command, "--suite", str(suite), "--out", str(out)], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while len(server.prompts) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        program.send_signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL
        assert outcomes(suite) == [Outcome.RIGHT] * 4
        assert run(server.url, suite).exit_code == 0
        assert len(server.prompts) == 9
        assert outcomes(suite) == [Outcome.RIGHT] * 8
        assert (out / FILE_NAME).read_text().count('"kind": "run"') == 2


def test_ctrl_c_keeps_what_is_finished(suite: Path) -> None:
    with fake_endpoint(at(3, "hang")) as server:
        command = [*KVQUANT, "eval", "--base-url", server.url]
        program = subprocess.Popen(
            [*command, "--suite", str(suite), "--out", str(suite.parent / "out")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while len(server.prompts) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=30)
    assert program.returncode == 130
    assert said.strip() == "kvquant: interrupted"
    assert outcomes(suite) == [Outcome.RIGHT] * 2


def test_progress_on_a_terminal(suite: Path) -> None:
    ours, terminal = pty.openpty()
    with fake_endpoint() as server, os.fdopen(ours, "rb", buffering=0) as shown:
        command = [*KVQUANT, "eval", "--base-url", server.url, "--suite", str(suite)]
        done = subprocess.run(
            [*command, "--out", str(suite.parent / "out")],
            stdout=subprocess.PIPE,
            stderr=terminal,
            timeout=60,
            check=True,
        )
        os.close(terminal)
        text = shown.read(2**16).decode()
    assert text.count("\r\x1b[K") == 9
    assert "8/8 samples, 8 of 8 right, 0:00:00 left" in text
    assert done.stdout.startswith(b"fake at ")


def test_no_progress_without_a_terminal(suite: Path) -> None:
    with fake_endpoint() as server:
        assert run(server.url, suite).stderr == ""
