"""Bit strings of codes: exact for every number of codes and bits, and read the same by plain integers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.formats.turboquant.bits import n_code_bytes, pack, unpack


def check_bit_string(packed: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], bits: int) -> None:
    """Column by column, the bytes are the little-endian integer Σ code_i · 2^(bits · i)."""
    for column, values in zip(packed.T, codes.T, strict=True):
        word = sum(int(code) << (bits * i) for i, code in enumerate(values))
        assert column.tobytes() == word.to_bytes(n_code_bytes(len(values), bits), "little")


@given(
    bits=st.integers(1, 8), n_codes=st.integers(1, 40), n=st.integers(1, 3), seed=st.integers(0, 2**32 - 1)
)
def test_bit_string(bits: int, n_codes: int, n: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (n_codes, n), dtype=np.uint8)
    packed = pack(codes, bits)
    check_bit_string(packed, codes, bits)
    np.testing.assert_array_equal(unpack(packed, bits, n_codes), codes)


def test_check_bit_string_notices_swapped_codes() -> None:
    codes = np.arange(16, dtype=np.uint8)[:, None]
    with pytest.raises(AssertionError):
        check_bit_string(pack(codes[::-1].copy(), 4), codes, 4)
