"""Torch gives NumPy's bytes and values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from formats.checks import check_torch_equals_numpy
from formats.turboquant.checks import unit_vectors
from formats.turboquant.strategies import WIDTHS, finite_rows, format_names
from kvquant.formats.registry import get_format


@given(data=st.data(), name=format_names(), width=st.sampled_from(WIDTHS))
def test_equal_on_edge_values(data: st.DataObject, name: str, width: int) -> None:
    check_torch_equals_numpy(get_format(name), data.draw(finite_rows(width)))


@pytest.mark.parametrize("name", ["tq_mse_1b", "tq_mse_4b", "tq_mse_3b-nc", "tq_mse_8b-f32"])
def test_equal_on_many_vectors_by_construction(name: str) -> None:
    # Elementwise operations only: a quarter of a million coordinates, several chunks.
    check_torch_equals_numpy(get_format(name), unit_vectors(3000, 80))


@pytest.mark.parametrize("name", ["tq_mse_4b-qr", "tq_prod_2b", "tq_prod_4b-qr"])
def test_equal_on_many_vectors_with_matrix_products(name: str) -> None:
    # Products in float64 may differ in their last bits; none of these coordinates is near enough to a tie to
    # show it.
    check_torch_equals_numpy(get_format(name), unit_vectors(2000, 128))


@pytest.mark.parametrize("name", ["tq_mse_4b", "tq_mse_4b-nc-f32", "tq_prod_3b", "tq_mse_2b-xf0"])
def test_equal_on_nan_and_infinity(name: str) -> None:
    x = unit_vectors(5, 64)
    x[0, 3], x[1, 4], x[2, 5], x[3] = np.nan, np.inf, -np.inf, 0
    check_torch_equals_numpy(get_format(name), x)


def test_strides_dtypes_and_gradients() -> None:
    fmt = get_format("tq_mse_4b")
    x = torch.from_numpy(unit_vectors(12, 64)).reshape(3, 4, 64)
    packed = fmt.quantize(x)
    assert packed.shape == (3, 4, fmt.n_bytes(64))
    assert torch.equal(fmt.quantize(x.transpose(0, 1)), packed.transpose(0, 1))
    assert torch.equal(fmt.quantize(x.double()), packed)
    assert torch.equal(fmt.quantize(x.clone().requires_grad_()), packed)
    assert torch.equal(x, torch.from_numpy(unit_vectors(12, 64)).reshape(3, 4, 64)), (
        "the input was written to"
    )
