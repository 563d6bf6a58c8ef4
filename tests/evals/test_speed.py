"""llama-bench is run in turns, its answers are believed only when they fit, and ratios survive drift."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.documents import from_json, to_json
from kvquant.errors import LlamaError
from kvquant.evals.speed import (
    BenchOptions,
    SpeedPoint,
    SpeedRound,
    parse_bench,
    run_round,
    run_rounds,
    speeds_of,
    turns,
)
from kvquant.policy import parse_policy
from kvquant.results.comparison import Interval
from kvquant.results.transform import TransformUsed
from kvquant.results.validation import Speed
from kvquant.transform import TransformFile
from llama.proof import PATCHED, needs_patched

HERE = Path(__file__).parent
RECORDED = (HERE / "recorded/llama-bench.jsonl").read_text()
RECORDED_POLICY = parse_policy("0-3:q8_0,4-:q4_0")
REFERENCE = HERE.parents[1] / "eval/reference-model/kvquant-reference-f16.gguf"

Summary = Callable[[list[SpeedRound], str], dict[str, tuple[Speed, ...]]]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with a llama-bench that is not one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = shutil.copy(HERE / "fake_llama_bench.py", folder)
    program = folder / "llama-bench"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    return folder


def test_recorded_output() -> None:
    points = parse_bench(f"a line of another kind\n{RECORDED}", RECORDED_POLICY)
    assert [(p.phase, p.depth, p.n_tokens) for p in points] == [
        ("prefill", 0, 64),
        ("decode", 0, 8),
        ("prefill", 256, 64),
        ("decode", 256, 8),
    ]
    assert [p.tokens_per_second for p in points] == [
        json.loads(line)["avg_ts"] for line in RECORDED.splitlines()
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECORDED[:200], "a result that is not readable"),
        (RECORDED.replace("kv_layers", "other"), "a result that is not readable"),
        (RECORDED.replace("0-3:q8_0", "0-3:q5_0"), "ran 0-3:q5_0,4-:q4_0, asked for 0-3:q8_0,4-:q4_0"),
        (RECORDED.replace('"avg_ts": ', '"avg_ts": 0'), "0 tokens/s|not readable"),
        (RECORDED.replace('"avg_ts": ', '"avg_ts": NaN, "x": '), "nan tokens/s"),
    ],
)
def test_output_that_does_not_fit_is_refused(text: str, message: str) -> None:
    with pytest.raises(LlamaError, match=message):
        parse_bench(text, RECORDED_POLICY)


def test_every_second_round_runs_backwards() -> None:
    order = list(turns(["a", "b", "c"], 3))
    assert order == [*((0, x) for x in "abc"), *((1, x) for x in "cba"), *((2, x) for x in "abc")]


def test_rounds_in_turns_and_a_failure_that_stops_only_its_policy(programs: Path, tmp_path: Path) -> None:
    policies = {name: parse_policy(f"*:{name}") for name in ("f16", "q4_0", "q8_0")}
    found: list[SpeedRound] = []
    failures: list[tuple[str, LlamaError, Path]] = []
    options = BenchOptions(REFERENCE, (0, 16), 8, 4)
    run_rounds(
        programs,
        options,
        policies,
        2,
        tmp_path,
        found.append,
        lambda *failure: failures.append(failure),
    )
    ran = (programs / "runs").read_text().split()
    assert ran == ["*:f16", "*:q4_0", "*:q8_0", "*:q8_0", "*:f16"]
    assert [(r.index, r.label) for r in found] == [(0, "f16"), (0, "q8_0"), (1, "q8_0"), (1, "f16")]
    ((label, error, log),) = failures
    assert label == "q4_0" and "failed to create context" in log.read_text()
    assert str(error) == "llama-bench ended with status 1: llama_bench: error: failed to create context"
    # Each run is half as fast as the one before it, and q8_0 has 80/100: 2 runs after f16, then 1 before.
    found_of = speeds_of(found, "f16")
    rows = {(label, row.phase, row.depth): row for label, of_label in found_of.items() for row in of_label}
    assert len(rows) == 2 * 2 * 2
    assert rows["q8_0", "decode", 16].ratio == pytest.approx(median([0.8 / 4, 0.8 * 2]))


def test_finished_rounds_are_not_run_again(programs: Path, tmp_path: Path) -> None:
    policies = {name: parse_policy(f"*:{name}") for name in ("f16", "q8_0")}
    found: list[SpeedRound] = []
    options = BenchOptions(REFERENCE, (0,), 8, 4)
    finished = {(0, "f16"), (0, "q8_0"), (1, "q8_0")}
    run_rounds(programs, options, policies, 2, tmp_path, found.append, pytest.fail, finished)
    assert [(r.index, r.label) for r in found] == [(1, "f16")]
    assert (programs / "runs").read_text() == "*:f16\n"


def test_a_transform_is_handed_on_and_part_of_the_name(programs: Path, tmp_path: Path) -> None:
    transform = TransformFile(Path("t.gguf"), TransformUsed("t.gguf", "ab" * 32, 9, 512, 2))
    policies = {name: parse_policy("*:q8_0") for name in ("with", "without")}
    found: list[SpeedRound] = []
    options = BenchOptions(REFERENCE, (0,), 8, 4)
    transforms = {"with": transform}
    run_rounds(programs, options, policies, 1, tmp_path, found.append, pytest.fail, transforms=transforms)
    assert [measured.policy for measured in found] == [f"*:q8_0@{'ab' * 8}", "*:q8_0"]
    assert (programs / "runs").read_text() == "*:q8_0 t.gguf\n*:q8_0\n"


@pytest.mark.parametrize(
    ("policy", "message"),
    [("*:q5_0", "did not finish within 0.3 s"), ("*:q5_1", "gave 1 of 2 results")],
)
def test_a_hang_and_a_half_answer_are_failures(
    programs: Path, tmp_path: Path, policy: str, message: str
) -> None:
    options = BenchOptions(REFERENCE, (0,), 8, 4, timeout_seconds=0.3 if "q5_0" in policy else 60)
    with pytest.raises(LlamaError, match=message):
        run_round(programs, options, "x", parse_policy(policy), 0, tmp_path / "log")


def test_without_the_program_it_says_which_one_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LlamaError, match=r"no llama-bench in .*; kvquant llama build"):
        run_rounds(tmp_path, BenchOptions(REFERENCE), {}, 1, tmp_path, pytest.fail, pytest.fail)


def _round(label: str, index: int, speed: float) -> SpeedRound:
    return SpeedRound(label, index, "*:f16", "", 1.0, (SpeedPoint("decode", 0, 4, speed),))


def check_drift_cancels(summary: Summary, ratios: list[float], drift: list[float]) -> None:
    """Whatever a round's speed is multiplied by, the ratio is the median of the true ones."""
    rounds = [_round("b", i, d * r) for i, (r, d) in enumerate(zip(ratios, drift, strict=True))]
    rounds += [_round("a", i, d) for i, d in enumerate(drift)]
    (row,) = summary(rounds, "a")["b"]
    assert row.ratio == pytest.approx(median(ratios))
    assert row.n_rounds == len(ratios)
    assert (row.interval is None) == (len(ratios) < 6), "fewer than six rounds say nothing about the spread"
    if row.interval is not None:
        low, high = row.interval
        assert min(ratios) <= low * (1 + 1e-9) and low <= row.ratio <= high <= max(ratios) * (1 + 1e-9)


rates = st.one_of(st.sampled_from([1.0, 1e-9, 1e9]), st.floats(0.01, 100))


@given(st.lists(st.tuples(rates, rates), min_size=1, max_size=12))
def test_drift_cancels(pairs: list[tuple[float, float]]) -> None:
    check_drift_cancels(speeds_of, [ratio for ratio, _ in pairs], [drift for _, drift in pairs])


def _unpaired(rounds: list[SpeedRound], baseline: str) -> dict[str, tuple[Speed, ...]]:
    found = speeds_of(rounds, baseline)
    reference = found[baseline][0].tokens_per_second
    return {
        label: tuple(replace(row, ratio=row.tokens_per_second / reference) for row in rows)
        for label, rows in found.items()
    }


def _always_an_interval(rounds: list[SpeedRound], baseline: str) -> dict[str, tuple[Speed, ...]]:
    return {
        label: tuple(replace(row, interval=Interval(row.ratio, row.ratio)) for row in rows)
        for label, rows in speeds_of(rounds, baseline).items()
    }


@pytest.mark.parametrize("broken", [_unpaired, _always_an_interval])
def test_the_check_of_drift_sees_broken_summaries(broken: Summary) -> None:
    with pytest.raises(AssertionError):
        check_drift_cancels(broken, [0.1, 10.0, 1.0], [100.0, 1.0, 5.0])


def test_rounds_without_a_partner_have_no_ratio() -> None:
    (rows,) = speeds_of([_round("b", 0, 5.0), _round("b", 1, 7.0)], "a").values()
    assert [(row.tokens_per_second, row.ratio, row.n_rounds) for row in rows] == [(6.0, None, 2)]
    found = speeds_of([_round("b", 0, 5.0), _round("b", 1, 9.0), _round("a", 1, 3.0)], "a")
    assert [(label, row.ratio, row.interval) for label, (row,) in found.items()] == [
        ("b", 3.0, None),
        ("a", 1.0, None),
    ]


def test_a_round_survives_its_json_form() -> None:
    measured = _round("*:q8_0", 3, 1 / 3)
    assert from_json(SpeedRound, to_json(measured), "x") == measured


@needs_patched
def test_the_real_program(tmp_path: Path) -> None:
    assert PATCHED is not None
    if not (PATCHED / "llama-bench").is_file():
        pytest.skip("the patched build has no llama-bench")
    options = BenchOptions(REFERENCE, (0, 32), 16, 2, n_threads=1)
    measured = run_round(PATCHED, options, "hybrid", parse_policy("0-10:q8_0,11-:q4_0"), 0, tmp_path / "log")
    assert [(p.phase, p.depth) for p in measured.points] == [
        ("prefill", 0),
        ("decode", 0),
        ("prefill", 32),
        ("decode", 32),
    ]
    with pytest.raises(LlamaError, match="failed to load model"):
        run_round(PATCHED, replace(options, model=HERE), "x", parse_policy("*:f16"), 0, tmp_path / "log")
