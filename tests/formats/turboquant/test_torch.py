"""Torch gives NumPy's bytes and values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.turboquant.checks import unit_vectors
from formats.turboquant.strategies import WIDTHS, finite_rows, format_names
from kvquant.formats.base import Format
from kvquant.formats.registry import get_format

torch = pytest.importorskip("torch")


def check_torch_equals_numpy(fmt: Format, x: np.ndarray) -> None:
    """Bytes are equal, and so are decoded values: bit for bit, NaN like NaN."""
    packed = fmt.quantize(x)
    np.testing.assert_array_equal(fmt.quantize(torch.from_numpy(x)).numpy(), packed)
    width = x.shape[-1]
    restored = fmt.dequantize(torch.from_numpy(packed), width)
    assert restored.dtype == torch.float32
    np.testing.assert_array_equal(restored.numpy(), fmt.dequantize(packed, width))


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


def test_check_notices_a_difference() -> None:
    class Forgetful:
        def __init__(self, fmt: Format) -> None:
            self.fmt = fmt

        def quantize(self, x: object) -> object:
            return self.fmt.quantize(x * 1.01 if isinstance(x, torch.Tensor) else x)

        def dequantize(self, packed: object, width: int) -> object:
            return self.fmt.dequantize(packed, width)

    with pytest.raises(AssertionError):
        check_torch_equals_numpy(Forgetful(get_format("tq_mse_4b")), unit_vectors(4, 64))


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
