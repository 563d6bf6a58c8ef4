"""Attention beside peers: shares are differences of times of a token, and runs that fail are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmark_scripts import load_benchmark

peers = load_benchmark("attention_peers")

RATES = {"patched": (100.0, 50.0), "stock": (100.0, 20.0), "ik_llama.cpp": (200.0, 40.0)}
"""Tokens per second with an empty cache and with a deep one: shares of 10, 40 and 20 ms."""


def timings(rates: dict[str, tuple[float, float]] = RATES) -> list[object]:
    return [
        peers.Timing("m", build, name, number, phase, depth, rate * (1 + number))
        for number in (0, 1, 2)
        for build, pair in rates.items()
        for name in peers.TYPES
        for phase in peers.PHASES
        for depth, rate in zip((0, 4096), pair, strict=True)
    ]


def test_a_share_is_what_depth_adds_to_a_token() -> None:
    assert peers.share(timings(), "m", "ik_llama.cpp", "q8_0", "decode") == pytest.approx(10)


def test_one_disturbed_round_of_three_changes_no_share() -> None:
    disturbed = [
        replace(one, tokens_per_second=1.0) if (one.round, one.depth) == (2, 0) else one for one in timings()
    ]
    assert peers.share(disturbed, "m", "stock", "f16", "prefill") == pytest.approx(15)


def test_the_table_has_shares_and_ratios() -> None:
    table = peers.table(timings())
    assert len(table.rows) == len(peers.PHASES) * len(peers.TYPES)
    assert table.rows[0] == ("m", "prefill", "f16", "5", "20", "10", "4.00", "2.00")


def test_a_build_that_was_not_measured_has_no_column() -> None:
    table = peers.table(timings({name: RATES[name] for name in ("patched", "ik_llama.cpp")}))
    assert table.rows[0] == ("m", "prefill", "f16", "5", "10", "2.00")


def test_a_share_below_the_noise_has_no_ratio() -> None:
    table = peers.table(timings({**RATES, "patched": (50.0, 100.0)}))
    assert {row[-1] for row in table.rows} == {peers.NONE}


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    program.write_text("#!/bin/sh\necho 'no such model' >&2\nexit 1\n")
    program.chmod(0o755)
    machine = peers.Machine(tmp_path, tmp_path / "python", 1)
    with pytest.raises(SystemExit, match="stock, q8_0: no such model"):
        list(machine.run("stock", tmp_path / "m.gguf", "q8_0", (0, 1)))


def test_stock_is_the_same_program_without_the_kernels(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    program.write_text('#!/bin/sh\necho "{\\"kernels\\": \\"$GGML_KV_ATTN\\"}"\n')
    program.chmod(0o755)
    machine = peers.Machine(tmp_path, tmp_path / "python", 1)
    for build, value in (("patched", ""), ("stock", "0")):
        assert list(machine.run(build, tmp_path / "m.gguf", "f16", (0,))) == [{"kernels": value}]
