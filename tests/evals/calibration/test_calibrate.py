"""`kvquant calibrate` on the reference model: from a text to a file that helps, struck down, refused.

KVQUANT_LLAMA_BIN names the folder of a patched build; `make test` sets it.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from command_line import KVQUANT
from evals.processes import assert_gone, fill_disk
from kvquant.cli.main import kvquant
from kvquant.documents import from_document
from kvquant.errors import CheckFailed, KVQuantError, LlamaError, TransformError, UsageError
from kvquant.evals.calibration.recipes import RECIPES
from kvquant.llama.moments import PROGRAM, load_moments
from kvquant.model.architectures import read_shape
from kvquant.model.gguf_file import open_model
from kvquant.reference.tasks import Size, Split, held_out_documents
from kvquant.results.calibration import CalibrationResult
from kvquant.transform import open_transform, read_transform
from kvquant.transform.order import is_ordered
from llama.proof import PATCHED

pytestmark = pytest.mark.skipif(
    PATCHED is None or not (PATCHED / PROGRAM).is_file(),
    reason=f"KVQUANT_LLAMA_BIN names no patched build with {PROGRAM}",
)

MODEL = Path(__file__).parents[3] / "eval/reference-model/kvquant-reference-f16.gguf"
N_CTX = 64


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    documents = held_out_documents(1, Split.TEST, 64, Size(n_tokens=200, most_pairs=16))
    path.write_text("".join(document.text for document in documents))
    return path


def arguments(text: Path, output: Path, *more: str) -> list[str]:
    where = ["calibrate", "--model", str(MODEL), "--text", str(text), "--output", str(output)]
    return [*where, "--ctx", str(N_CTX), "--tokens", "640", "--chunks", "4", "--threads", "1", *more]


def run(text: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(kvquant, arguments(text, output, *more))


def failure(result: Result, kind: type[KVQuantError]) -> str:
    assert isinstance(result.exception, kind), (result.exception, result.output)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_from_a_text_to_a_file_that_helps(text: Path, tmp_path: Path) -> None:
    output, figure = tmp_path / "a.gguf", tmp_path / "a.svg"
    done = run(text, output, "--rounds", "1", "--json", "--figure", str(figure))
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    result = from_document(CalibrationResult, document, "result")
    judged = result.judgement
    assert judged.better and judged.kl_with < judged.kl_without / 4
    assert judged.by_depth[-1].last == N_CTX - 2 and sum(result.contexts.values()) == 640
    assert [trial.name for trial in result.trials[: len(RECIPES)]] == list(RECIPES)
    assert [layer.layer for layer in result.layers] == list(read_shape(MODEL).kv_layers)
    found = open_transform(output, open_model(MODEL), read_shape(MODEL), digest=True)
    assert found.used == result.transform and found.used.n_ctx == N_CTX
    assert read_transform(output).provenance["text"] == "text"
    assert "<svg" in figure.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "a.svg"]


def test_with_and_without_it_in_one_measurement(text: Path, tmp_path: Path) -> None:
    output = tmp_path / "t.gguf"
    assert run(text, output, "--kind", "diagonal").exit_code == 0
    options = ["--ctx", str(N_CTX), "--tokens", "496", "--threads", "1", "--out", str(tmp_path / "out")]
    policies = ["--policy", "q4_0", "--policy", "q4_0@no-transform", "--policy", "f16"]
    words = ["divergence", "--model", str(MODEL), "--text", str(text), *options, *policies]
    done = CliRunner().invoke(kvquant, [*words, "--transform", str(output), "--json"])
    assert done.exit_code == 0, done.output
    calibrated, plain, f16 = json.loads(done.stdout)["policies"]
    assert (calibrated["label"], plain["label"]) == ("q4_0@t", "q4_0")
    assert calibrated["transform"]["digest"] == read_transform(output).digest
    assert plain["transform"] is None and f16["kl_mean"] == 0 and f16["transform"] is None
    assert calibrated["kl_mean"] < plain["kl_mean"] / 2
    table = CliRunner().invoke(kvquant, [*words, "--transform", str(output)]).stdout
    assert f"digest {read_transform(output).digest[:16]}" in table
    alone = CliRunner().invoke(kvquant, [*words, "--json"])
    assert isinstance(alone.exception, UsageError)  # q4_0 twice: with and without mean the same now


def test_types_that_want_an_order_are_calibrated_and_measured_in_it(text: Path, tmp_path: Path) -> None:
    """Both sides of the judgement are ordered; k5x3 has the bytes of q4_0."""
    output = tmp_path / "t.gguf"
    done = run(text, output, "--kind", "diagonal", "--policy", "*:k=k5x3/v=f16")
    assert done.exit_code == 0, done.output
    assert is_ordered(read_transform(output), 31)
    options = ["--ctx", str(N_CTX), "--tokens", "496", "--threads", "1", "--transform", str(output), "--json"]
    policies = [f"--policy=*:k={name}/v=q8_0" for name in ("k5x3", "q4_0", "k4x2")]
    words = ["divergence", "--model", str(MODEL), "--text", str(text), *options, *policies]
    done = CliRunner().invoke(kvquant, [*words, "--policy", "*:k=k5x3/v=q8_0@no-transform"])
    assert "1 of 4 policies failed" in failure(done, LlamaError)
    split, q4_0, smaller, refused = json.loads(done.stdout)["policies"]
    assert split["kv_bytes"] == q4_0["kv_bytes"] > smaller["kv_bytes"]
    assert split["kl_mean"] < q4_0["kl_mean"] < smaller["kl_mean"]
    assert "K type k5x3 wants keys in the order" in refused["failure"]


def test_deeper_than_it_was_calibrated_is_warned_of(text: Path, tmp_path: Path) -> None:
    output = tmp_path / "t.gguf"
    assert run(text, output, "--kind", "diagonal").exit_code == 0
    words = ["divergence", "--model", str(MODEL), "--text", str(text), "--ctx", "96", "--tokens", "47"]
    done = CliRunner().invoke(kvquant, [*words, "--policy", "q4_0", "--transform", str(output)])
    assert "was calibrated to 64 tokens and is used at 96" in done.stderr


def test_what_does_not_help_is_not_written(text: Path, tmp_path: Path) -> None:
    """So few tokens are judged that no gain could be told from chance."""
    output = tmp_path / "a.gguf"
    given = ("--policy", "0:k=q8_0,rest:f16", "--chunks", "1", "--kind", "centre")
    result = run(text, output, *given)
    assert "was not written" in failure(result, CheckFailed) and not output.exists()
    assert "KL without" in result.stdout
    again = run(text, output, *given, "--anyway")
    assert "was written all the same" in failure(again, CheckFailed)
    assert [layer.layer for layer in read_transform(output).layers] == [0]


def test_kill_9_loses_nothing_that_is_finished(text: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "a.gguf", tmp_path / "a.gguf.work"
    command = [*KVQUANT, *arguments(text, output, "--rounds", "0")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        deadline = time.monotonic() + 120
        while not list(work.glob("choosing/*.jsonl")):
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.01)
        program.kill()
        program.communicate()
    assert_gone(tmp_path)
    assert not output.exists() and load_moments(work / f"moments-{N_CTX}.npz").n_tokens == 640
    kept = (work / f"moments-{N_CTX}.npz").read_bytes()
    message = failure(run(text, output, "--rounds", "1"), UsageError)
    assert "another n rounds; remove it or give another --work" in message
    kept_in = ("--rounds", "0", "--work", str(work))
    assert run(text, output, *kept_in).exit_code == 0
    assert (work / f"moments-{N_CTX}.npz").read_bytes() == kept
    whole = tmp_path / "whole.gguf"
    assert run(text, whole, "--rounds", "0").exit_code == 0
    assert read_transform(whole).digest == read_transform(output).digest


def test_a_full_disk_leaves_no_half_file(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "a.gguf"
    fill_disk(monkeypatch, at_call=4)
    message = failure(run(text, output, "--kind", "diagonal"), KVQuantError)
    assert "No space left on device" in message
    monkeypatch.undo()
    assert_gone(tmp_path)
    assert not output.exists()
    assert run(text, output, "--kind", "diagonal").exit_code == 0


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        (("--policy", "f16"), UsageError, "quantizes no keys"),
        (("--ctx", "8192", "--tokens", "9000"), UsageError, "was trained on"),
        (("--figure", "a.pdf"), UsageError, "ends in .png or .svg"),
        (("--output", "/nonexistent/a.gguf"), UsageError, "there is no folder /nonexistent"),
        (("--llama-bin", "/nonexistent"), LlamaError, "there is no llama-kv-divergence"),
        (("--text", "/nonexistent"), UsageError, "/nonexistent"),
        (("--text", str(MODEL)), UsageError, "is not UTF-8"),
    ],
)
def test_what_will_not_do_is_one_line(
    text: Path, tmp_path: Path, more: tuple[str, ...], kind: type[KVQuantError], message: str
) -> None:
    result = run(text, tmp_path / "a.gguf", *more)
    assert message in failure(result, kind)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(("n_characters", "part"), [(60, "fitting"), (6000, "choosing")])
def test_a_text_that_is_too_short_says_which_part(
    text: Path, tmp_path: Path, n_characters: int, part: str
) -> None:
    """Of 6,000 characters 58 are left to choose by, in which there are no 64 tokens."""
    short = tmp_path / "short"
    short.write_text(text.read_text()[:n_characters])
    result = run(short, tmp_path / "a.gguf", "--tokens", "6400", "--chunks", "1")
    assert f"its part for {part}" in failure(result, UsageError)


def test_a_damaged_file_is_refused_where_it_is_used(text: Path, tmp_path: Path) -> None:
    broken = tmp_path / "t.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00")
    words = ["divergence", "--model", str(MODEL), "--text", str(text), "--ctx", "64", "--policy", "q4_0"]
    result = CliRunner().invoke(kvquant, [*words, "--transform", str(broken)])
    assert "not a whole GGUF file" in failure(result, TransformError)
