"""The patched flash attention, driven through ggml, against float64 and against stock llama.cpp's.

KVQUANT_LLAMA_BIN names the folder of a patched build, or of scripts that run one by an emulator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.checks import check_accuracy, check_threads
from attention.strategies import TOKENS, cases, plain_case
from attention_op import PROGRAM, AttentionProgram, Rounding, rounding_of
from tested_types import TESTED_TYPES

EXECUTABLE = Path(os.environ.get("KVQUANT_LLAMA_BIN") or "/nonexistent") / PROGRAM

pytestmark = pytest.mark.skipif(
    not EXECUTABLE.is_file(), reason=f"KVQUANT_LLAMA_BIN names no build with {PROGRAM}"
)


@pytest.fixture(scope="module")
def ours() -> Iterator[AttentionProgram]:
    with AttentionProgram([EXECUTABLE]) as program:
        yield program


@pytest.fixture(scope="module")
def stock() -> Iterator[AttentionProgram]:
    with AttentionProgram([EXECUTABLE], kv_attention=False) as program:
        yield program


@pytest.fixture(scope="module")
def rounding() -> Rounding:
    return rounding_of(EXECUTABLE)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("k_type", TESTED_TYPES)
@settings(max_examples=12)
@given(data=st.data())
def test_no_less_accurate_than_stock(
    ours: AttentionProgram,
    stock: AttentionProgram,
    rounding: Rounding,
    k_type: str,
    tokens: str,
    data: st.DataObject,
) -> None:
    case = data.draw(cases(k_type, tokens))
    check_accuracy(case, ours.compute(case).output, stock.compute(case).output, rounding)


@pytest.mark.parametrize("k_type", TESTED_TYPES)
def test_every_pair_of_types(
    ours: AttentionProgram, stock: AttentionProgram, rounding: Rounding, k_type: str
) -> None:
    for v_type, n_tokens in product(TESTED_TYPES, (1, 6, 30)):
        case = plain_case(k_type, v_type, n_tokens)
        check_accuracy(case, ours.compute(case).output, stock.compute(case).output, rounding)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("k_type", TESTED_TYPES)
@settings(max_examples=6)
@given(data=st.data(), n_threads=st.integers(2, 4))
def test_threads_do_not_change_a_bit(
    ours: AttentionProgram, k_type: str, tokens: str, data: st.DataObject, n_threads: int
) -> None:
    case = data.draw(cases(k_type, tokens))
    check_threads(lambda given, n: ours.compute(given, n_threads=n).output, case, n_threads)


def test_the_switch_turns_it_off(ours: AttentionProgram, stock: AttentionProgram) -> None:
    """What runs with GGML_KV_ATTN=0 is not what runs without."""
    case = plain_case("q8_0", "q4_0", 1)
    assert np.any(ours.compute(case).output != stock.compute(case).output)
