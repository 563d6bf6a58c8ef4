"""Proof: llama-kv-divergence says what llama-perplexity says, on both paths, and one line for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from gguf import GGUFReader

from kvquant.evals.divergence import (
    PROGRAM,
    CacheSetup,
    DivergenceRequest,
    FeedPath,
    TokenDivergence,
    measure_divergence,
)
from kvquant.evals.divergence_summary import summarize_divergence
from kvquant.processes.background import BackgroundProgram, clean_environment
from kvquant.reference.tasks import Size, Split, held_out_documents
from llama.divergence_checks import check_against_saved, check_against_table
from llama.perplexity import SavedLogProbs, TableRow, read_log_probs, read_table, run_perplexity
from llama.proof import PATCHED

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "eval/reference-model/kvquant-reference-f16.gguf"
PROGRAMS = PATCHED or Path("/nonexistent")

N_CTX = 128
N_CHUNKS = 4
N_VOCAB = 1924
N_SCORED = N_CTX - 1 - N_CTX // 2
POLICY = "0-3:q4_0,4-10:q8_0,11-:q4_0"

needs_program = pytest.mark.skipif(
    not (PROGRAMS / PROGRAM).is_file(), reason=f"KVQUANT_LLAMA_BIN names no build with {PROGRAM}"
)
needs_both = pytest.mark.skipif(
    not ((PROGRAMS / PROGRAM).is_file() and (PROGRAMS / "llama-perplexity").is_file()),
    reason=f"KVQUANT_LLAMA_BIN names no build with {PROGRAM} and llama-perplexity",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text of four chunks and a bit, and the documents it consists of."""
    folder = tmp_path_factory.mktemp("divergence")
    documents = held_out_documents(1, Split.TEST, 8, Size(n_tokens=200, most_pairs=16))
    chosen = [document.text for document in documents if document.kind in {"recall", "language", "chat"}]
    (folder / "text").write_text("".join(chosen))
    for index, text in enumerate(chosen):
        (folder / f"document-{index}").write_text(text)
    return folder


@pytest.fixture(scope="module")
def request_(folder: Path) -> DivergenceRequest:
    return DivergenceRequest(
        REFERENCE, (folder / "text",), (CacheSetup(POLICY),), n_ctx=N_CTX, n_ubatch=N_CTX, n_threads=1
    )


def all_tokens_of(request: DivergenceRequest, folder: Path, skip: int = 0) -> list[list[TokenDivergence]]:
    """The tokens of each policy."""
    tokens: list[list[TokenDivergence]] = [[] for _ in request.policies]
    measure_divergence(
        PROGRAMS,
        request,
        folder / "log",
        lambda index, chunk: tokens[index].extend(chunk),
        skip_chunks=skip,
        silence_seconds=120,
    )
    return tokens


def tokens_of(request: DivergenceRequest, folder: Path, skip: int = 0) -> list[TokenDivergence]:
    """The tokens of the only policy."""
    (tokens,) = all_tokens_of(request, folder, skip)
    return tokens


def on_path(request: DivergenceRequest, path: FeedPath) -> DivergenceRequest:
    """The request with its baseline and its policies fed on a path."""
    policies = tuple(replace(policy, path=path) for policy in request.policies)
    return replace(request, policies=policies, baseline=replace(request.baseline, path=path))


@pytest.fixture(scope="module")
def tokens(request_: DivergenceRequest, folder: Path) -> list[TokenDivergence]:
    return tokens_of(replace(request_, n_tokens=N_CHUNKS * N_SCORED), folder)


Account = tuple[SavedLogProbs, SavedLogProbs, list[TableRow]]


@pytest.fixture(scope="module")
def account(folder: Path) -> Account:
    """What llama-perplexity saves of the baseline and of the policy, and its table."""
    saved = {}
    for name, arguments in (("f16", []), ("policy", ["--kv-layers", POLICY])):
        file = folder / name
        own = ["--chunks", str(N_CHUNKS), "--kl-divergence-base", str(file), *arguments]
        run_perplexity(PROGRAMS, REFERENCE, folder / "text", N_CTX, *own)
        saved[name] = read_log_probs(file)
    against = ["--chunks", str(N_CHUNKS), "--kl-divergence", "--kl-divergence-base", str(folder / "f16")]
    printed = run_perplexity(PROGRAMS, REFERENCE, folder / "text", N_CTX, *against, "--kv-layers", POLICY)
    return saved["f16"], saved["policy"], read_table(printed)


@needs_both
def test_agrees_with_llama_perplexity(tokens: list[TokenDivergence], account: Account) -> None:
    baseline, policy, rows = account
    assert np.mean([token.kl for token in tokens]) > 20 * baseline.error.max(), "nothing to tell apart"
    check_against_saved(tokens, baseline, policy)
    check_against_table(tokens, rows, N_CHUNKS)


WRONG: dict[str, Callable[[list[TokenDivergence]], Iterator[TokenDivergence]]] = {
    "no divergence": lambda tokens: (replace(token, kl=0.0) for token in tokens),
    "in bits": lambda tokens: (replace(token, kl=token.kl / np.log(2)) for token in tokens),
    "one position late": lambda tokens: iter([*tokens[1:], tokens[0]]),
    "caches swapped": lambda tokens: (
        replace(token, nll_baseline=token.nll_policy, nll_policy=token.nll_baseline) for token in tokens
    ),
    "always the same token": lambda tokens: (replace(token, same_top=True) for token in tokens),
}


@needs_both
@pytest.mark.parametrize("wrong", WRONG)
def test_the_comparison_sees_wrong_tokens(
    wrong: str, tokens: list[TokenDivergence], account: Account
) -> None:
    baseline, policy, rows = account
    broken = list(WRONG[wrong](tokens))
    with pytest.raises(AssertionError):
        check_against_saved(broken, baseline, policy)
    if wrong != "one position late":  # which hardly moves a mean
        with pytest.raises(AssertionError):
            check_against_table(broken, rows, N_CHUNKS)


@needs_program
def test_its_last_line_sums_up_its_tokens(request_: DivergenceRequest, folder: Path) -> None:
    two = (*request_.policies, CacheSetup("*:q8_0", n_chunks=1))
    both = all_tokens_of(replace(request_, policies=two, n_ctx=64, n_tokens=40), folder)
    last = json.loads((folder / "log").read_text().splitlines()[-1])
    assert last["kind"] == "end" and [len(tokens) for tokens in both] == [40, 31]
    for sums, tokens in zip(last["policies"], both, strict=True):
        summary = summarize_divergence(tokens)
        assert summary is not None and sums["n_tokens"] == summary.n_tokens
        found = [sums[name] for name in ("kl", "same_top", "delta_p_rms", "ppl_baseline", "ppl_policy")]
        expected = [summary.mean, summary.top1.value, summary.delta_p_rms]
        assert found == pytest.approx([*expected, summary.ppl_baseline, summary.ppl_policy], rel=1e-12)


@needs_program
@pytest.mark.parametrize("path", ["prefill", "decode"])
def test_the_floor(path: FeedPath, request_: DivergenceRequest, folder: Path) -> None:
    """The same computation twice is the same; on the two paths it differs, by far less than a policy does."""
    short = on_path(replace(request_, n_ctx=64, n_tokens=50), path)
    setups = (short.baseline, short.baseline.on_the_other_path(), *short.policies)
    twice, floor, policy = all_tokens_of(replace(short, policies=setups), folder)
    assert all((token.kl, token.same_top, token.delta_p) == (0.0, True, 0.0) for token in twice)
    assert 0 < 1000 * np.mean([token.kl for token in floor]) < np.mean([token.kl for token in policy])


SEVERAL = (
    CacheSetup("*:q8_0"),
    CacheSetup("*:q4_0"),
    CacheSetup("*:q4_0", rotation=False),
    CacheSetup("*:q4_0", n_chunks=2),
    CacheSetup("*:q4_0", path="decode"),
)


@needs_program
@pytest.mark.parametrize(
    ("how", "more"),
    [
        ("contexts are kept", []),
        ("contexts are made for each chunk", ["--contexts", "0"]),
        ("a chunk is scored in parts", ["--logits-mib", "0"]),
        ("parts, contexts made anew for each", ["--logits-mib", "0", "--contexts", "0"]),
    ],
)
def test_many_policies_are_what_each_is_alone(
    how: str, more: list[str], request_: DivergenceRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(request_, n_ctx=96, n_ubatch=24, n_tokens=3 * 47)
    alone = [tokens_of(replace(request, policies=(setup,)), folder) for setup in SEVERAL]
    plain = DivergenceRequest.arguments
    monkeypatch.setattr(DivergenceRequest, "arguments", lambda self, skip=0: [*plain(self, skip), *more])
    together = all_tokens_of(replace(request, policies=SEVERAL), folder)
    assert together == alone, how
    assert [len(tokens) for tokens in together] == [141, 141, 141, 94, 141]
    q8, q4, unrotated, _, decoded = (np.mean([token.kl for token in tokens]) for tokens in together)
    assert q8 < min(q4, unrotated, decoded) and len({q4, unrotated, decoded}) == 3


@needs_program
def test_policies_side_by_side_are_what_they_are_one_by_one(
    request_: DivergenceRequest, folder: Path
) -> None:
    """One thread for each, as in a run of one thread."""
    request = replace(request_, n_ctx=64, policies=SEVERAL, n_tokens=70)
    for n_contexts in (8, 0):
        side_by_side = replace(request, n_threads=2, n_jobs=2, n_contexts=n_contexts)
        found, alone = all_tokens_of(side_by_side, folder), all_tokens_of(request, folder)
        for tokens, expected in zip(found, alone, strict=True):
            assert [token.kl for token in tokens] == pytest.approx([token.kl for token in expected], rel=0.2)
        assert len({token.nll_baseline for token in found[0]}) > 60


@needs_program
def test_a_policy_that_fails_leaves_the_others(folder: Path) -> None:
    arguments = ["-m", str(REFERENCE), "-f", str(folder / "text"), "-c", "64", "-t", "1", "--n-tokens", "31"]
    # Without flash attention V cannot be quantized.
    done = run_program([*arguments, "-fa", "off", "--kv-layers", "*:v=q8_0", "--kv-layers", "*:k=q8_0"])
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["kind"] for line in lines] == ["start", "failed", "baseline", "chunk", "end"]
    assert lines[1]["policy"] == 0 and "cannot make the policy's context" in lines[1]["what"]
    assert lines[3]["policy"] == 1 and [sums["n_tokens"] for sums in lines[4]["policies"]] == [0, 31]


@needs_program
def test_both_paths_tell_the_same(
    tokens: list[TokenDivergence], request_: DivergenceRequest, folder: Path
) -> None:
    """The stored values are the same but for rounding at the edge of a step, whichever way they came in."""
    decoded = tokens_of(on_path(replace(request_, n_tokens=len(tokens)), "decode"), folder)
    kl = np.array([[token.kl for token in run] for run in (tokens, decoded)])
    assert not np.array_equal(kl[0], kl[1])
    assert np.corrcoef(np.log(kl))[0, 1] > 0.95
    assert kl[1].mean() == pytest.approx(kl[0].mean(), rel=0.15)
    # The baseline of one path is the baseline of the other, up to the floor.
    for before, after in zip(tokens, decoded, strict=True):
        assert after.nll_baseline == pytest.approx(before.nll_baseline, abs=0.02)


@needs_program
def test_which_positions_are_scored(folder: Path) -> None:
    texts = tuple(sorted(folder.glob("document-*")))
    # Nothing in a float32 cache rounds one way in one batch and another way in the next.
    exact = (CacheSetup("*:f32"),)
    request = DivergenceRequest(REFERENCE, texts, exact, n_ctx=96, n_ubatch=40, n_threads=1)
    chosen = tokens_of(replace(request, score_from=50, every=7), folder)
    assert {token.document for token in chosen} == {0, 1, 2}
    full = [token.position for token in chosen if (token.document, token.chunk) == (0, 0)]
    assert full == list(range(50, 95, 7))
    places = [(token.document, token.chunk, token.position) for token in chosen]
    assert places == sorted(places) and len(set(places)) == len(places)
    once = tokens_of(replace(request, score_from=50, every=2**31 - 1), folder)
    assert [(token.document, token.chunk, token.position) for token in once] == [
        place for place in places if place[2] == 50
    ]
    # Each is what it is when every position is scored, in batches of another size.
    every = {
        (token.document, token.chunk, token.position): token
        for token in tokens_of(replace(request, score_from=20, n_ubatch=96), folder)
    }
    for token, place in zip(chosen, places, strict=True):
        assert token.nll_policy == pytest.approx(every[place].nll_policy, abs=0.01)


@needs_program
@pytest.mark.parametrize("path", ["prefill", "decode"])
def test_a_resumed_run_goes_on_as_it_would_have(
    path: FeedPath, request_: DivergenceRequest, folder: Path
) -> None:
    request = on_path(replace(request_, n_ctx=32, n_tokens=40), path)
    whole = tokens_of(request, folder)
    for skip in (1, 2, 3):  # the last of the three chunks is cut short
        assert tokens_of(request, folder, skip=skip) == whole[15 * skip :]


@needs_program
@pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="AddressSanitizer keeps what is freed")
def test_memory_does_not_grow_with_the_text(request_: DivergenceRequest, folder: Path) -> None:
    (folder / "long").write_text((folder / "text").read_text() * 2)
    peaks = []
    for n_tokens in (31, 16 * 31):
        request = replace(request_, texts=(folder / "long",), n_ctx=64, n_tokens=n_tokens)
        with BackgroundProgram([str(PROGRAMS / PROGRAM), *request.arguments()], folder / "log") as program:
            peaks.append(_peak(program))
            assert program.exit_status() == 0
    logits_of_the_rest = 15 * 31 * N_VOCAB * 4 * 2  # of both sides, float32
    assert min(peaks) > REFERENCE.stat().st_size
    assert peaks[1] - peaks[0] < logits_of_the_rest / 4


def _peak(program: BackgroundProgram) -> int:
    """The largest resident size seen until its end, in bytes."""
    peak = 0
    while program.exit_status() is None:
        peak = max(peak, program.peak_n_bytes() or 0)
        time.sleep(0.01)
    return peak


BAD: dict[str, tuple[list[str], int, str]] = {
    "no model": (["--file", "TEXT"], 2, "no model was given: -m FILE"),
    "no text": (["-m", "MODEL"], 2, "no text was given: -f FILE"),
    "no value": (["-m", "MODEL", "-f"], 2, "-f needs a value"),
    "unknown": (["-m", "MODEL", "-f", "TEXT", "--frob"], 2, "unknown argument '--frob'; --help lists them"),
    "not a number": (["-m", "MODEL", "-f", "TEXT", "-c", "12x"], 2, "-c '12x': a whole number from 0"),
    "too large": (["-m", "MODEL", "-f", "TEXT", "-ub", "9999999999"], 2, "-ub '9999999999': a whole number"),
    "zero step": (["-m", "MODEL", "-f", "TEXT", "--every", "0"], 2, "--every '0': a whole number from 1"),
    "path": (["-m", "MODEL", "-f", "TEXT", "--path", "up"], 2, "--path 'up': prefill or decode is needed"),
    "type": (["-m", "MODEL", "-f", "TEXT", "-ctk", "q9_0"], 2, "-ctk 'q9_0': not a cache type (f32, f16"),
    "policy": (
        ["-m", "MODEL", "-f", "TEXT", "--kv-layers", "0:q9_0"],
        2,
        "--kv-layers: column 3: unknown type",
    ),
    "missing text": (["-m", "MODEL", "-f", "nowhere"], 1, "nowhere: No such file or directory"),
    "folder": (["-m", "MODEL", "-f", "/"], 1, "/: Is a directory"),
    "empty text": (["-m", "MODEL", "-f", "/dev/null"], 1, "/dev/null: no text in it"),
    "missing model": (["-m", "nowhere", "-f", "TEXT"], 1, "cannot load nowhere: "),
    "no gguf": (["-m", "TEXT", "-f", "TEXT"], 1, "cannot load TEXT: "),
    "context": (
        ["-m", "MODEL", "-f", "TEXT", "-c", "5000"],
        1,
        "-c 5000: the model was trained on 4096 tokens",
    ),
    "short text": (["-m", "MODEL", "-f", "TEXT", "-c", "0"], 1, "nothing to score: the longest document has"),
    "no flash": (
        ["-m", "MODEL", "-f", "TEXT", "-c", "64", "-fa", "off", "-ctv", "q8_0"],
        1,
        "cannot make the policy's context: ",
    ),
}


@needs_program
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, folder: Path) -> None:
    arguments, status, message = BAD[name]
    files = {"MODEL": str(REFERENCE), "TEXT": str(folder / "document-0")}
    done = run_program([files.get(argument, argument) for argument in arguments])
    assert done.returncode == status, done.stderr
    expected = message.replace("TEXT", files["TEXT"])
    assert done.stdout == "" and done.stderr.startswith(f"error: {expected}"), done.stderr
    assert done.stderr.count("\n") == 1


@needs_program
def test_a_model_that_computes_no_numbers(folder: Path) -> None:
    (norm,) = (tensor for tensor in GGUFReader(REFERENCE).tensors if tensor.name == "output_norm.weight")
    content = bytearray(REFERENCE.read_bytes())
    content[norm.data_offset : norm.data_offset + 4] = np.float32(np.nan).tobytes()
    (folder / "nan").write_bytes(content)
    done = run_program(["-m", str(folder / "nan"), "-f", str(folder / "text"), "-c", "64", "-t", "1"])
    assert done.returncode == 1
    assert done.stderr == "error: document 0, chunk 0, position 32: the baseline's logits are not finite\n"


@needs_program
def test_a_policy_without_effect_is_said(folder: Path) -> None:
    arguments = ["-m", str(REFERENCE), "-f", str(folder / "text"), "-c", "64", "-t", "1", "--n-tokens", "1"]
    done = run_program([*arguments, "--kv-layers", "40:q4_0"])
    assert done.returncode == 0
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} == {"--kv-layers"}
    assert json.loads(done.stdout.splitlines()[-1])["policies"][0]["kl"] == 0


@needs_program
def test_full_disk_and_help(folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_program(["-m", str(REFERENCE), "-f", str(folder / "text"), "-c", "64", "-t", "1"], full)
    assert (done.returncode, done.stderr) == (
        1,
        "error: cannot write to standard output: No space left on device\n",
    )
    assert run_program(["--help"]).stdout.startswith(f"usage: {PROGRAM} ")


@needs_program
@pytest.mark.parametrize("arch", ["gemma3", "qwen35"])
def test_windows_and_recurrent_layers(arch: str, proof_model: Callable[[str], Path], folder: Path) -> None:
    request = DivergenceRequest(
        proof_model(arch), (folder / "text",), (CacheSetup("*:q4_0"),), n_ctx=160, n_tokens=20, n_threads=1
    )
    for path in ("prefill", "decode"):
        found = tokens_of(on_path(request, path), folder)
        assert len(found) == 20 and any(token.kl > 0 for token in found)


def run_program(
    arguments: list[str], stdout: int | IO[bytes] = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAMS / PROGRAM), *arguments],
        env=clean_environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
