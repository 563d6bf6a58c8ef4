"""What is predicted for boards is made of the committed cycles and bytes, and the page shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import attention_cycles_rk
import predict_rk
from attention_cycles_rk import Listing, Throughput
from kvquant.errors import KVQuantError
from predict_rk import Board, Decoding, LayerWork

FOUND = predict_rk.read_record()


def test_the_page_shows_the_prediction() -> None:
    assert predict_rk.PAGE.read_text(encoding="utf-8") == predict_rk.page(), "run tools/predict_rk.py write"


def test_the_page_on_attention_shows_the_cycles() -> None:
    assert attention_cycles_rk.PAGE.read_text(encoding="utf-8") == attention_cycles_rk.page()


def test_predictions_are_of_the_committed_cycles() -> None:
    cycles = json.loads(predict_rk.CYCLES.read_text(encoding="utf-8"))
    record = json.loads(predict_rk.RECORD.read_text(encoding="utf-8"))
    assert record["series_digest"] == cycles["build"]["series_digest"] and record["predicted"] is True
    known = {
        (one["model"], one["kernels"], one["k_type"], one["v_type"]): one["n_head"] * one["cycles"]
        for one in cycles["cycles"]
    }
    assert len(FOUND) == len(known)
    for one in FOUND:
        wanted = known[one.model, one.kernels, *predict_rk.POLICIES[one.policy]]
        assert {layer.cycles for layer in one.layers} == {wanted}


layers = st.builds(
    LayerWork,
    n_layers=st.integers(1, 40),
    window=st.sampled_from([0, 512]),
    n_bytes=st.integers(1, 10_000),
    cycles=st.floats(1, 1e5),
)
decodings = st.builds(
    Decoding,
    model=st.just("m"),
    policy=st.just("q8_0"),
    kernels=st.just("patched"),
    weights=st.integers(1, 10**10),
    layers=st.lists(layers, min_size=1, max_size=3).map(tuple),
)
boards = st.builds(Board, st.floats(1e9, 1e11), st.floats(0.5, 5), st.integers(1, 8))


@given(decodings, boards, st.integers(0, 40_000), st.integers(0, 40_000))
def test_more_rows_never_take_less_and_a_better_board_never_more(
    one: Decoding, board: Board, depth: int, more: int
) -> None:
    seconds = one.seconds(depth, board)
    assert seconds <= one.seconds(depth + more, board)
    assert one.seconds(0, board) == one.weights / board.bytes_per_second
    for better in (
        replace(board, bytes_per_second=2 * board.bytes_per_second),
        replace(board, ghz=2 * board.ghz),
        replace(board, n_cores=board.n_cores + 1),
    ):
        assert one.seconds(depth, better) <= seconds


def test_a_window_bounds_what_a_layer_reads() -> None:
    one = Decoding("m", "f16", "patched", 1, (LayerWork(2, 512, 100, 1.0),))
    board = Board(1e9)
    assert one.seconds(512, board) == one.seconds(100_000, board) > one.seconds(511, board)
    assert one.bound(board) == "memory"
    assert replace(one, layers=(LayerWork(2, 512, 1, 1e6),)).bound(board) == "products"


def test_straight_code_ends_at_branches_gaps_and_where_counts_change() -> None:
    listing = Listing.__new__(Listing)
    listing.lines = {0: "add x0, x0, x1", 4: "b.ne #0", 8: "mul x0, x0, x1", 12: "nop", 20: "nop", 24: "nop"}
    counts = {0: 5, 4: 5, 8: 2, 12: 2, 20: 2, 24: 9}
    assert list(listing.blocks(counts)) == [
        ("add x0, x0, x1\nb.ne #0", 5),
        ("mul x0, x0, x1\nnop", 2),
        ("nop", 2),
        ("nop", 9),
    ]


def test_a_machine_without_llvm_mca_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KVQuantError, match="apt-get install llvm-19"):
        Throughput()


def test_an_unknown_model_is_named_with_the_known() -> None:
    with pytest.raises(KVQuantError, match=r"no prediction for 'other'; known: .*smollm2-135m"):
        predict_rk.measure(Path(), "other", (0,), 2.3, None)
