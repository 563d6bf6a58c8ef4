"""`kvquant validate` on the reference model, with real servers: finished, struck down, resumed, refused.

KVQUANT_LLAMA_BIN names the folder of a patched build; `make test` sets it.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from command_line import KVQUANT
from evals.processes import assert_gone, fill_disk, processes_of
from evals.small_runs import RULES
from kvquant.cli.main import kvquant
from kvquant.errors import CheckFailed, KVQuantError, PolicyError, UsageError
from kvquant.evals.append_only import alone_in
from kvquant.evals.divergence_log import read_tokens
from kvquant.evals.suite import load_suite
from kvquant.evals.validation.records import JOURNAL, RESULT, folder_name
from kvquant.results.comparison import Verdict
from kvquant.results.validation import ValidationResult, parse_result
from llama.proof import needs_patched

pytestmark = needs_patched

TASKS = f"""
[suite]
name = "tasks"
about = "answers alone"
n = 8
max_tokens = 8
[server]
n_ctx = 256
{RULES}
[[test]]
task = "fact_value"
category = "value"
weight = 1.0
"""

# About a tenth of a second each, so that a kill finds a validation at work.
SLOW = TASKS.replace("weight = 1.0", "weight = 1.0\nn_pairs = 60\nn_tokens = 200")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.toml"
    path.write_text(TASKS)
    return path


def arguments(
    suite: Path | str, out: Path, *more: str, policies: tuple[str, ...] = ("f16", "q8_0")
) -> list[str]:
    chosen = [part for policy in policies for part in ("--policy", policy)]
    return ["validate", *chosen, "--suite", str(suite), "--out", str(out), "--threads", "1", *more]


def run(suite: Path | str, out: Path, *more: str, policies: tuple[str, ...] = ("f16", "q8_0")) -> Result:
    return CliRunner().invoke(kvquant, arguments(suite, out, *more, policies=policies))


def started(suite: Path | str, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [*KVQUANT, *arguments(suite, out, *more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def samples(out: Path, policy: str) -> list[dict[str, Any]]:
    path = out / "tasks" / folder_name(policy) / "samples.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [line for line in map(json.loads, lines) if line["kind"] == "sample"]


def check_each_once(found: list[dict[str, Any]], n: int) -> None:
    """``n`` samples, none twice, each with what an answer has."""
    counts = Counter(sample["id"] for sample in found)
    assert len(counts) == n, f"{len(counts)} of {n} samples"
    assert set(counts.values()) == {1}, counts.most_common(1)
    assert all(sample["outcome"] in {"right", "wrong", "malformed", "truncated"} for sample in found)


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def result_of(out: Path) -> ValidationResult:
    return parse_result(json.loads((out / RESULT).read_bytes()), RESULT)


def failure(result: Result, kind: type[KVQuantError]) -> str:
    assert isinstance(result.exception, kind), (result.exception, result.output)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_the_short_suite_end_to_end(tmp_path: Path) -> None:
    policies = ("f16", "q8_0", "q4_0", "hybrid", "k8v4", "0:f16,1-:k=q5_0/v=iq4_nl")
    out = tmp_path / "out"
    result = run("short", out, "--json", policies=policies)
    assert result.exit_code == 0, result.output
    found = parse_result(json.loads(result.stdout), "stdout")
    assert found == result_of(out)
    assert [policy.label for policy in found.policies] == [*policies[:-1], "0:f16,1-:k=q5_0/v=iq4_nl"]
    n = 2 * load_suite("short").n
    for policy in found.policies:
        check_each_once(samples(out, policy.policy), n)
        assert policy.memory is not None and policy.memory.findings == ()
        assert policy.memory.kv_bytes_logged == policy.memory.kv_bytes_computed == policy.memory.kv_bytes_slot
        assert policy.memory.peak_rss_bytes is not None and policy.memory.peak_rss_bytes > 10 * 2**20
        assert policy.chat is not None and policy.chat.tokens_per_second
        assert {point.depth for point in policy.speed} == {0, 64}
        assert all(row.n == (n if row.category == "total" else n // 2) for row in policy.tasks)
        assert [path.path for path in policy.divergence] == ["prefill", "decode"]
    # One thread, one slot, temperature 0: asked again the baseline says the same, to the letter.
    answers = [[sample["answer"] for sample in samples(out, name)] for name in ("*:f16", "f16.repeat")]
    assert answers[0] == answers[1]
    assert {row.n_lost + row.n_gained for row in found.policies[0].repeat} == {0}
    kls = {policy.label: policy.divergence[0].mean for policy in found.policies}
    assert 0 <= kls["f16"] < kls["q8_0"] < kls["q4_0"]
    assert found.policies[2].memory.ratio == 4.5 / 16
    assert not (out / "work").exists() and not (out / "logs").exists()
    assert found.provenance["build"]["series_digest"] and found.provenance["machine"]["kernel"]
    line = json.loads((out / "tasks" / "q8_0" / "samples.jsonl").read_text().splitlines()[0])
    assert line["model_report"]["sha256"] == found.model.sha256
    assert "--kv-layers" in line["model_report"]["server"]
    # Folders of this machine mean nothing elsewhere.
    texts = [path.read_text() for path in out.rglob("*.json*")]
    assert not [text for text in texts if str(tmp_path) in text or os.environ["KVQUANT_LLAMA_BIN"] in text]
    # Nothing is left to do: the same command starts no server and says the same.
    again = run("short", out, "--json", policies=policies)
    assert parse_result(json.loads(again.stdout), "stdout").policies == found.policies
    shown = CliRunner().invoke(kvquant, ["compare", str(out), "--json"])
    assert json.loads(shown.stdout) == json.loads(again.stdout)
    ranked = CliRunner().invoke(kvquant, ["rank", str(out), "--json"])
    assert len(json.loads(ranked.stdout)["ranking"]) == len(policies)


@pytest.mark.parametrize("at", [0, 3, 11])
def test_kill_9_of_kvquant(tmp_path: Path, suite: Path, at: int) -> None:
    """At the start, under the first policy, under the second."""
    suite.write_text(SLOW)
    out = tmp_path / "out"
    program = started(suite, out)

    def n_finished() -> int:
        return len(samples(out, "*:f16")) + len(samples(out, "*:q8_0"))

    wait_for(lambda: bool(processes_of(out)) if at == 0 else n_finished() >= at)
    program.kill()
    program.communicate()
    assert_gone(out)
    before = samples(out, "*:f16") + samples(out, "*:q8_0")
    assert len(before) >= at
    assert run(suite, out).exit_code == 0
    for policy in ("*:f16", "*:q8_0", "f16.repeat"):
        check_each_once(samples(out, policy), 8)
    after = samples(out, "*:f16") + samples(out, "*:q8_0")
    assert [line for line in after if line in before] == before
    assert not (out / "work").exists()


def test_kill_9_of_the_server_is_an_outcome_of_its_policy(tmp_path: Path, suite: Path) -> None:
    suite.write_text(SLOW)
    out = tmp_path / "out"
    program = started(suite, out)
    wait_for(lambda: len(samples(out, "*:f16")) == 8 and len(samples(out, "*:q8_0")) >= 3)
    for pid in processes_of(out):
        os.kill(pid, signal.SIGKILL)
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 1, errors
    assert "kvquant: q8_0: tasks failed: llama-server ended with status 137" in errors
    assert errors.splitlines()[-1].startswith("kvquant: error: failed: q8_0; run the same command again")
    found = {policy.label: policy for policy in result_of(out).policies}
    assert found["f16"].verdict is Verdict.BASELINE and found["f16"].repeat
    assert found["q8_0"].verdict is Verdict.FAILED
    (failed,) = found["q8_0"].failures
    assert failed.part == "tasks" and failed.log == "logs/q8_0.server.log"
    assert "llama" in (out / failed.log).read_text()
    before = samples(out, "*:q8_0")
    assert 3 <= len(before) < 8
    assert_gone(out)
    assert run(suite, out).exit_code == 0
    check_each_once(samples(out, "*:q8_0"), 8)
    assert samples(out, "*:q8_0")[: len(before)] == before
    assert result_of(out).policies[1].failures == ()
    assert not (out / "logs").exists()


def test_a_server_that_hangs_is_an_outcome_of_its_policy(tmp_path: Path, suite: Path) -> None:
    suite.write_text(SLOW)
    out = tmp_path / "out"
    program = started(suite, out, "--timeout", "2")
    wait_for(lambda: len(samples(out, "*:f16")) >= 2)
    for pid in processes_of(out):
        os.kill(pid, signal.SIGSTOP)
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 1
    assert "kvquant: f16: tasks failed: llama-server hangs: 3 times in a row no complete answer" in errors
    found = {policy.label: policy for policy in result_of(out).policies}
    assert found["f16"].verdict is Verdict.FAILED
    # The other policy went on.
    check_each_once(samples(out, "*:q8_0"), 8)
    assert_gone(out)


def test_ctrl_c(tmp_path: Path, suite: Path) -> None:
    suite.write_text(SLOW)
    out = tmp_path / "out"
    program = started(suite, out)
    wait_for(lambda: len(samples(out, "*:f16")) >= 2)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 130 and errors.strip() == "kvquant: interrupted"
    assert_gone(out)
    assert not (out / "work").exists()
    assert run(suite, out).exit_code == 0
    check_each_once(samples(out, "*:f16"), 8)


def test_progress_is_for_people_who_watch(tmp_path: Path, suite: Path) -> None:
    ours, terminal = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as shown:
        command = [*KVQUANT, *arguments(suite, tmp_path / "out")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, timeout=120, check=True)
        os.close(terminal)
        text = shown.read(2**16).decode()
    assert "f16: tasks 1/8 " in text and "q8_0: tasks 8/8 " in text and "f16: repeat 8/8 " in text
    assert "more than 0:00:" in text and text.rstrip().endswith("\r\x1b[K")
    assert b"\x1b" not in done.stdout and b"q8_0" in done.stdout


def test_two_in_one_folder_are_refused(tmp_path: Path, suite: Path) -> None:
    with alone_in(tmp_path / "out"):
        assert "another kvquant is running in" in failure(run(suite, tmp_path / "out"), UsageError)
    assert not (tmp_path / "out" / JOURNAL).exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "1"], "another seed"),
        (["--ctx", "300"], "another context"),
        (["--threads", "2"], "another number of threads"),
        (["--suite", "short"], "another suite"),
        (["--policy", "bf16", "--policy", "q5_0"], None),
    ],
)
def test_a_folder_holds_one_validation(
    tmp_path: Path, suite: Path, more: list[str], message: str | None
) -> None:
    out = tmp_path / "out"
    assert run(suite, out, "--n", "2").exit_code == 0
    before = (out / JOURNAL).read_bytes()
    result = run(suite, out, "--n", "2", *more)
    if message is None:
        # More policies are welcome, and what was measured is not measured again.
        assert result.exit_code == 0 and (out / JOURNAL).read_bytes().startswith(before)
        assert len(result_of(out).policies) == 4
    else:
        assert message in failure(result, UsageError)
        assert (out / JOURNAL).read_bytes() == before


def test_a_torn_journal_goes_on_and_a_damaged_one_names_the_line(tmp_path: Path, suite: Path) -> None:
    out = tmp_path / "out"
    assert run(suite, out, "--n", "2").exit_code == 0
    path = out / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert CliRunner().invoke(kvquant, ["compare", str(out)]).exit_code == 0
    assert run(suite, out, "--n", "2").exit_code == 0
    lines = whole.splitlines(keepends=True)
    for damage in (
        b"\0" * 20 + b"\n",
        b"[]\n",
        lines[1][:40] + b"\n",
        lines[1].replace(b'"part"', b'"pert"'),
    ):
        path.write_bytes(b"".join([lines[0], damage, *lines[2:]]))
        message = failure(run(suite, out, "--n", "2"), KVQuantError)
        assert f"{path}: line 2 is damaged; remove that line" in message
    path.write_bytes(whole.replace(b'"schema_version": 1', b'"schema_version": 2'))
    assert "schema version 2, this kvquant reads 1" in failure(run(suite, out, "--n", "2"), KVQuantError)


def test_a_full_disk_keeps_what_is_measured(
    tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fill_disk(monkeypatch, at_call=5)
    message = failure(run(suite, out), KVQuantError)
    assert "No space left on device" in message and "samples before this are kept" in message
    monkeypatch.undo()
    assert_gone(out)
    before = samples(out, "*:f16")
    assert before
    assert run(suite, out).exit_code == 0
    assert samples(out, "*:f16")[: len(before)] == before
    check_each_once(samples(out, "*:f16"), 8)


@pytest.mark.parametrize(
    ("policies", "kind", "message"),
    [
        (("f16", "tq_mse_4b"), PolicyError, "no cache of type tq_mse_4b; measure it with kvquant analyze"),
        (("f16", "0-10:q8_0,kv5:q4_0"), PolicyError, "name each layer once"),
        (("hybrid", "0-10:q8_0,11-31:q4_0"), UsageError, "is given twice"),
    ],
)
def test_policies_that_will_not_do(
    tmp_path: Path, suite: Path, policies: tuple[str, ...], kind: type[KVQuantError], message: str
) -> None:
    assert message in failure(run(suite, tmp_path / "out", policies=policies), kind)
    assert not (tmp_path / "out").exists()


def test_a_policy_that_does_not_parse_is_shown_with_its_place(tmp_path: Path, suite: Path) -> None:
    result = run(suite, tmp_path / "out", policies=("f16", "0:q9_0"))
    assert isinstance(result.exception, PolicyError)
    sentence, *shown = str(result.exception).split("\n")
    assert sentence.startswith("policy, column 3: unknown type 'q9_0', did you mean q8_0?")
    assert shown == ["  0:q9_0", "    ^"]
    assert not (tmp_path / "out").exists()


def test_a_policy_that_says_more_than_the_model_has_is_warned_about(tmp_path: Path, suite: Path) -> None:
    result = run(suite, tmp_path / "out", "--dry-run", policies=("f16", "0-99:q8_0"))
    assert result.exit_code == 0
    assert "goes past the end" in result.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--llama-bin", "/nonexistent"], "there is no llama-server in /nonexistent"),
        (["--model", "/nonexistent.gguf"], "/nonexistent.gguf"),
        (["--suite", "standrad"], "no suite 'standrad'; known: agent"),
    ],
)
def test_what_cannot_be_started(tmp_path: Path, suite: Path, more: list[str], message: str) -> None:
    assert message in failure(run(suite, tmp_path / "out", *more), KVQuantError)
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_loaded_fails_every_policy(tmp_path: Path, suite: Path) -> None:
    # A good file but for its tokenizer, which no llama.cpp knows.
    model = tmp_path / "odd.gguf"
    shipped = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"
    model.write_bytes(shipped.read_bytes().replace(b"rwkv", b"vkwr", 1))
    result = run(suite, tmp_path / "out", "--model", str(model))
    assert "failed: f16, q8_0" in failure(result, KVQuantError)
    found = result_of(tmp_path / "out").policies
    assert [policy.verdict for policy in found] == [Verdict.FAILED] * 2
    assert (tmp_path / "out" / "logs" / "f16.server.log").exists()


def test_questions_need_a_chat_template(tmp_path: Path, suite: Path) -> None:
    model = tmp_path / "base.gguf"
    shipped = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"
    model.write_bytes(shipped.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.text_template"))
    message = failure(run(suite, tmp_path / "out", "--model", str(model), "--dry-run"), UsageError)
    assert message.startswith(f"{model} has no chat template, and the suite tasks asks questions in a chat")
    # What asks nothing needs none.
    result = run("memory", tmp_path / "out", "--model", str(model), "--dry-run")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out").exists()


def test_dry_run_leaves_nothing(tmp_path: Path, suite: Path) -> None:
    result = run(suite, tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "  tasks: 8\n" in result.stdout and "from a short try with the baseline" in result.stdout
    assert not (tmp_path / "out").exists()
    assert run(suite, tmp_path / "out").exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    result = run(suite, tmp_path / "out", "--dry-run")
    assert "tasks: 8, 8 finished" in result.stdout and "about 0:00:00 left" in result.stdout
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_kill_9_while_divergence_is_measured(tmp_path: Path) -> None:
    suite = tmp_path / "kld.toml"
    kld = '[kld]\ntext = "reference"\nn_documents = 16\nn_tokens = 128\nn_ctx = 64\npaths = ["prefill"]\n'
    suite.write_text(f'[suite]\nname = "kld"\nabout = "x"\n{kld}{RULES}')
    out, whole = tmp_path / "out", tmp_path / "whole"
    program = started(suite, out)
    path = out / "divergence" / "q8_0.prefill.jsonl"
    wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") >= 3)
    program.kill()
    program.communicate()
    assert_gone(out)
    before = read_tokens(path)
    assert before
    assert run(suite, out).exit_code == 0
    assert run(suite, whole).exit_code == 0
    after = read_tokens(path)
    assert after[: len(before)] == before
    assert after == read_tokens(whole / "divergence" / "q8_0.prefill.jsonl")
    assert result_of(out).policies == result_of(whole).policies
    assert not (out / "work").exists()


def test_exit_code_3_when_a_policy_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "strict.toml"
    kld = '[kld]\ntext = "reference"\nn_documents = 16\nn_tokens = 48\nn_ctx = 48\npaths = ["prefill"]\n'
    path.write_text(f'[suite]\nname = "strict"\nabout = "x"\n{kld}{RULES}safe_kl = 1e-9\nbroken_kl = 2e-9\n')
    result = run(path, tmp_path / "out", policies=("f16", "q4_0"))
    assert failure(result, CheckFailed) == "broken: q4_0"
    assert "q4_0: broken" in result.stdout


def test_a_validation_is_shown_alone(tmp_path: Path, suite: Path) -> None:
    assert run(suite, tmp_path / "out", "--n", "2").exit_code == 0
    out = str(tmp_path / "out")
    assert "one at a time" in failure(CliRunner().invoke(kvquant, ["compare", out, out]), UsageError)
    (tmp_path / "out" / JOURNAL).unlink()
    assert CliRunner().invoke(kvquant, ["compare", out]).exit_code == 0
    assert "without records" in failure(
        CliRunner().invoke(kvquant, ["compare", out, "--suite", str(suite)]), UsageError
    )


def test_the_check_of_samples_can_fail() -> None:
    one = {"id": "a/0", "outcome": "right"}
    check_each_once([one], 1)
    for broken in ([one, one], [], [{**one, "outcome": "error"}]):
        with pytest.raises(AssertionError):
            check_each_once(broken, 1)


def test_the_check_of_processes_can_fail(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path)]) as program:
        wait_for(lambda: processes_of(tmp_path) == [program.pid])
        with pytest.raises(AssertionError):
            assert_gone(tmp_path, seconds=0.1)
        program.kill()
    assert_gone(tmp_path)
