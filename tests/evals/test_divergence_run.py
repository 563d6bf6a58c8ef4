"""`kvquant divergence` on the reference model: measured, struck down, gone on with, refused.

KVQUANT_LLAMA_BIN names the folder of a patched build; `make test` sets it.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from command_line import KVQUANT
from evals.processes import assert_gone, fill_disk
from kvquant.cli.main import kvquant
from kvquant.documents import read_json
from kvquant.errors import KVQuantError, LlamaError, PolicyError, UsageError
from kvquant.evals.append_only import alone_in
from kvquant.evals.divergence_log import read_tokens
from kvquant.evals.divergence_run import RESULT, run_divergence
from kvquant.evals.divergence_summary import summarize_divergence
from kvquant.memory import ContextOptions, memory_of
from kvquant.model.architectures import read_shape
from kvquant.policy import parse_policy
from kvquant.reference.tasks import Size, Split, held_out_documents
from kvquant.results.divergence import DivergenceResult
from llama.proof import needs_patched

pytestmark = needs_patched

MODEL = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"
N_CTX = 64
N_SCORED = N_CTX - 1 - N_CTX // 2


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    documents = held_out_documents(1, Split.TEST, 32, Size(n_tokens=200, most_pairs=16))
    path.write_text("".join(document.text for document in documents))
    return path


def arguments(text: Path, *more: str, policies: tuple[str, ...] = ("q8_0", "q4_0")) -> list[str]:
    chosen = [part for policy in policies for part in ("--policy", policy)]
    start = ["divergence", "--model", str(MODEL), "--text", str(text), "--ctx", str(N_CTX), "--threads", "1"]
    return [*start, *chosen, *more]


def run(text: Path, *more: str, policies: tuple[str, ...] = ("q8_0", "q4_0")) -> Result:
    return CliRunner().invoke(kvquant, arguments(text, *more, policies=policies))


def result_of(text: Path, *more: str, policies: tuple[str, ...] = ("q8_0", "q4_0")) -> dict[str, Any]:
    done = run(text, "--json", *more, policies=policies)
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def failure(result: Result, kind: type[KVQuantError]) -> str:
    assert isinstance(result.exception, kind), (result.exception, result.output)
    # A policy's own error shows the place under its line.
    assert kind is PolicyError or "\n" not in str(result.exception)
    return str(result.exception)


def test_a_measurement_end_to_end(text: Path, tmp_path: Path) -> None:
    policies = ("f16", "q8_0", "hybrid", "q4_0", "q4_0@no-rotation")
    out = tmp_path / "out"
    found = result_of(text, "--tokens", str(16 * N_SCORED), "--out", str(out), policies=policies)
    assert [(policy["label"], policy["rotation"]) for policy in found["policies"]] == [
        *((name, True) for name in policies[:4]),
        ("q4_0@no-rotation", False),
    ]
    f16, q8_0, hybrid, q4_0, unrotated = found["policies"]
    assert (f16["kl_mean"], f16["top1"], f16["kl_low"], f16["kl_high"]) == (0, 1, None, None)
    assert f16["perplexity"] == found["baseline_perplexity"] and f16["of_f16"] == 1
    assert 0 < found["floor"]["kl_mean"] < q8_0["kl_mean"] / 10
    assert q8_0["kl_mean"] < hybrid["kl_mean"] < q4_0["kl_mean"] < unrotated["kl_mean"]
    shape = read_shape(MODEL)
    for policy in found["policies"]:
        resolved = parse_policy(policy["policy"]).resolve(shape)
        assert policy["kv_bytes"] == memory_of(shape, resolved, ContextOptions(N_CTX, 1)).kv_bytes
        assert policy["n_tokens"] == found["n_tokens"] == 16 * N_SCORED
    summary = summarize_divergence(read_tokens(out / "tokens" / "q4_0.prefill.jsonl"))
    assert summary is not None and summary.interval is not None
    assert (q4_0["kl_mean"], q4_0["kl_low"], q4_0["kl_high"]) == (summary.mean, *summary.interval)
    assert (q4_0["top1"], q4_0["perplexity"]) == (summary.top1.value, summary.ppl_policy)
    assert read_json(DivergenceResult, out / RESULT).n_tokens == found["n_tokens"]
    table = run(
        text, "--tokens", str(16 * N_SCORED), "--out", str(out), policies=policies
    ).stdout.splitlines()
    assert [line.split()[0] for line in table[4:]] == list(policies)
    assert len({line.index(end) + len(end) for line, end in zip(table[3:5], ("KL", " 0"), strict=True)}) <= 2


def test_more_policies_leave_the_others_as_they_are(text: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", ("--tokens", "200")
    result_of(text, *options, "--out", str(out), policies=("q4_0",))
    path = out / "tokens" / "q4_0.prefill.jsonl"
    before = path.read_bytes()
    both = result_of(text, *options, "--out", str(out), policies=("q4_0", "q8_0"))
    assert path.read_bytes() == before
    assert both["policies"] == result_of(text, *options, policies=("q4_0", "q8_0"))["policies"]
    assert result_of(text, *options, "--no-rotation", policies=("q8_0",))["policies"][0]["rotation"] is False


def test_kill_9_loses_no_finished_chunk(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*KVQUANT, *arguments(text, "--out", str(out))]
    path = out / "tokens" / "q4_0.prefill.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        deadline = time.monotonic() + 60
        while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.01)
        program.kill()
        program.communicate()
    assert_gone(tmp_path)
    before = read_tokens(path)
    assert before and not (out / RESULT).exists()
    assert run(text, "--out", str(out)).exit_code == 0
    after = read_tokens(path)
    assert after[: len(before)] == before
    assert run(text, "--out", str(tmp_path / "whole")).exit_code == 0
    assert after == read_tokens(tmp_path / "whole" / "tokens" / "q4_0.prefill.jsonl")


def test_a_full_disk_keeps_what_is_measured(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fill_disk(monkeypatch, at_call=9)
    message = failure(run(text, "--out", str(out)), KVQuantError)
    assert "No space left on device" in message and "before this are kept" in message
    monkeypatch.undo()
    assert_gone(tmp_path)
    before = read_tokens(out / "tokens" / "q8_0.prefill.jsonl")
    assert run(text, "--out", str(out)).exit_code == 0
    assert before and read_tokens(out / "tokens" / "q8_0.prefill.jsonl")[: len(before)] == before


@pytest.mark.parametrize(
    ("policies", "more", "kind", "message"),
    [
        (("q9_0",), (), PolicyError, "q9_0"),
        (("tq_mse_4b",), (), PolicyError, "no cache of type tq_mse_4b"),
        (("q4_0@shaken",), (), UsageError, "'shaken' is not a variation; known: no-rotation"),
        (("q4_0", "*:q4_0"), (), UsageError, "*:q4_0 is given twice"),
        (("q4_0", "q4_0@no-rotation"), ("--no-rotation",), UsageError, "is given twice"),
        (("q4_0",), ("--ctx", "5000"), UsageError, "was trained on 4096 tokens"),
        (("q4_0",), ("--ctx", "4096", "--text", str(MODEL.parent / "README.md")), None, ""),
        (("q4_0",), ("--text", "/nonexistent"), UsageError, "/nonexistent: no such file"),
        (("q4_0",), ("--llama-bin", "/nonexistent"), LlamaError, "there is no llama-kv-divergence in"),
    ],
)
def test_what_will_not_do_is_one_line(
    text: Path,
    tmp_path: Path,
    policies: tuple[str, ...],
    more: tuple[str, ...],
    kind: type[KVQuantError] | None,
    message: str,
) -> None:
    result = run(text, "--out", str(tmp_path / "out"), "--tokens", "1", *more, policies=policies)
    if kind is None:
        assert result.exit_code == 0, result.output
        return
    assert message in failure(result, kind)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_one_policy_that_fails_fails_the_command_after_the_others_are_shown(
    text: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    def failing(*arguments: Any) -> DivergenceResult:
        result = run_divergence(*arguments)
        first = replace(result.policies[0], failure="its logits are not finite", kl_mean=None)
        return replace(result, policies=(first, *result.policies[1:]))

    monkeypatch.setattr("kvquant.cli.divergence.run_divergence", failing)
    done = run(text, "--tokens", "31", *more)
    assert "1 of 2 policies failed" in failure(done, LlamaError)
    assert "q8_0: failed: its logits are not finite" in done.stderr
    if more:
        assert json.loads(done.stdout)["policies"][1]["kl_mean"] > 0
    else:
        assert [line.split()[0] for line in done.stdout.splitlines()[4:]] == ["q8_0", "q4_0"]


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("A few words.")
    message = failure(run(short, "--ctx", "512"), LlamaError)
    assert "nothing to score: the longest document has" in message and "chunks have 512" in message


def test_a_folder_is_of_one_measurement(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--out", str(out), "--tokens", "31")
    assert run(text, *options).exit_code == 0
    for more, what in (
        (("--path", "decode"), "path"),
        (("--ctx", "32"), "context"),
        (("--tokens", "9"), "tokens"),
    ):
        assert f"another {'number of ' * (what == 'tokens')}{what}; give another --out" in failure(
            run(text, *options, *more), UsageError
        )
    text.write_text(text.read_text() + " ")
    assert "another texts; give another --out" in failure(run(text, *options), UsageError)
    with alone_in(out):
        assert "another kvquant is running in" in failure(run(text, *options), UsageError)
