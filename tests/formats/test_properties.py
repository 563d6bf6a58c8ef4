"""What holds for every input, by format; docs/formats.md says what is promised and what is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats import checks
from formats.layouts import BLOCK, GGML, GRIDS
from formats.strategies import Blocks, blocks, broken_blocks, plain_blocks, populations, shapes
from kvquant.formats.registry import get_format

every_format = pytest.mark.parametrize("name", GGML)
block_formats = pytest.mark.parametrize("name", BLOCK)


@pytest.mark.parametrize("name", [name for name in BLOCK if name != "iq4_nl"])
@given(x=blocks())
def test_round_trip_is_idempotent(name: str, x: Blocks) -> None:
    checks.check_idempotent(get_format(name), x)


@given(x=populations(64))
def test_a_fitted_block_hardly_moves_again(x: Blocks) -> None:
    checks.check_refit_is_close(get_format("iq4_nl"), x)


@pytest.mark.parametrize("name", GRIDS)
@given(x=blocks())
def test_error_bound(name: str, x: Blocks) -> None:
    checks.check_error_bound(get_format(name), x)


@pytest.mark.parametrize("name", ["iq4_nl", "iq4_nl_cache"])
@given(x=blocks())
def test_level_bound(name: str, x: Blocks) -> None:
    checks.check_level_bound(get_format(name), x)


@given(x=st.one_of(plain_blocks(), populations(32)))
def test_nearest_level(x: Blocks) -> None:
    checks.check_nearest_level(get_format("iq4_nl"), x)


@every_format
@given(x=plain_blocks(), exponent=st.integers(-6, 6))
def test_powers_of_two(name: str, x: Blocks, exponent: int) -> None:
    checks.check_powers_of_two(get_format(name), x, exponent)


@pytest.mark.parametrize("name", [name for name in GGML if not name.endswith("_1")])
@given(x=plain_blocks())
def test_sign_symmetry(name: str, x: Blocks) -> None:
    checks.check_sign_symmetry(get_format(name), x)


@every_format
@given(x=blocks(max_blocks=6), data=st.data())
def test_blocks_are_independent(name: str, x: Blocks, data: st.DataObject) -> None:
    checks.check_blocks_are_independent(get_format(name), x, data.draw(st.permutations(range(len(x)))))


@every_format
@given(x=plain_blocks(3), lead=shapes())
def test_layouts(name: str, x: Blocks, lead: tuple[int, ...]) -> None:
    checks.check_layouts(get_format(name), x, lead)


@every_format
@given(x=blocks())
def test_input_is_kept(name: str, x: Blocks) -> None:
    checks.check_input_is_kept(get_format(name), x)


@every_format
@given(x=blocks())
def test_torch_equals_numpy(name: str, x: Blocks) -> None:
    checks.check_torch_equals_numpy(get_format(name), x)


@block_formats
@given(case=broken_blocks())
def test_a_broken_block_is_nan(name: str, case: tuple[Blocks, int, int, float]) -> None:
    checks.check_broken_block(get_format(name), *case)


@every_format
@given(case=broken_blocks())
def test_torch_equals_numpy_on_broken_blocks(name: str, case: tuple[Blocks, int, int, float]) -> None:
    x, block, place, value = case
    x = x.copy()
    x[block, place] = value
    checks.check_torch_equals_numpy(get_format(name), x)


@pytest.mark.parametrize(
    "names",
    [
        ("q4_0", "q5_0", "q8_0", "f16", "f32"),
        ("q4_1", "q5_1", "q8_0", "f16", "f32"),
        ("iq4_nl", "q5_0", "q8_0", "f16"),
        ("iq4_nl_cache", "q5_0", "q8_0", "f16"),
        ("q8_0", "bf16", "f16", "f32"),
    ],
)
@given(x=populations())
def test_error_falls_with_bits(names: tuple[str, ...], x: Blocks) -> None:
    checks.check_error_falls_with_bits([get_format(name) for name in names], x)


@pytest.mark.parametrize("values", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_plain_formats_keep_what_is_not_finite(name: str, values: float) -> None:
    fmt = get_format(name)
    x = np.array([1.0, values, -2.0], np.float32)
    np.testing.assert_array_equal(fmt.dequantize(fmt.quantize(x), 3), x)
