"""The rotation is ggml's, bit for bit, and where it applies is llama.cpp's rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from kvquant.errors import FormatError
from kvquant.formats.hadamard import Rotated, llama_block, rotate, unrotate
from kvquant.formats.registry import get_format

GOLDEN = Path(__file__).parent.parent / "golden" / "hadamard.npz"
BLOCKS = (1, 2, 4, 64, 128, 256)

Float32Array = npt.NDArray[np.float32]


def check_bits(y: Any, expected: Float32Array) -> None:
    """``y`` has the bits of ``expected``; +0 and -0 differ."""
    np.testing.assert_array_equal(np.asarray(y).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("block", [64, 128, 256])
def test_equals_ggml(block: int) -> None:
    with np.load(GOLDEN) as golden:
        check_bits(rotate(golden[f"x.{block}"], block), golden[f"y.{block}"])


def test_check_bits_notices_another_order_of_rounding() -> None:
    with np.load(GOLDEN) as golden:
        x, y = golden["x.64"], golden["y.64"]
    with pytest.raises(AssertionError):
        check_bits((x @ (hadamard(64) / 8).astype(np.float32)).astype(np.float32), y)


@pytest.mark.parametrize("block", BLOCKS)
def test_is_the_walsh_hadamard_matrix(block: int) -> None:
    matrix = rotate(np.eye(block, dtype=np.float32), block)
    np.testing.assert_allclose(matrix, hadamard(block) / np.sqrt(block), rtol=1e-6)


@st.composite
def rotatable(draw: st.DrawFn) -> tuple[Float32Array, int]:
    """Draw rows whose width is one to three blocks, and the block."""
    block = draw(st.sampled_from(BLOCKS))
    width = block * draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** draw(st.integers(-30, 30))
    return (rng.standard_normal((draw(st.integers(1, 4)), width)) * scale).astype(np.float32), block


@given(rotatable())
def test_undoes_itself_and_keeps_lengths(drawn: tuple[Float32Array, int]) -> None:
    x, block = drawn
    y = rotate(x, block)
    size = np.abs(x).max()
    np.testing.assert_allclose(unrotate(y, block), x, rtol=0, atol=1e-5 * size)
    lengths = [np.linalg.norm(z.astype(np.float64), axis=1) for z in (x, y)]
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-5)


@given(rotatable())
def test_blocks_and_rows_are_rotated_on_their_own(drawn: tuple[Float32Array, int]) -> None:
    x, block = drawn
    y = rotate(x, block)
    check_bits(rotate(x.reshape(-1, block), block).reshape(x.shape), y)
    check_bits(np.ascontiguousarray(rotate(x[::-1].T.copy().T, block)), y[::-1].copy())


@given(rotatable())
def test_torch_equals_numpy(drawn: tuple[Float32Array, int]) -> None:
    torch = pytest.importorskip("torch")
    x, block = drawn
    check_bits(rotate(torch.from_numpy(x), block).numpy(), rotate(x, block))


def test_undefined_values_stay_in_their_block() -> None:
    x = np.ones((1, 128), np.float32)
    x[0, 3], x[0, 5] = np.inf, np.nan
    y = rotate(x, 64)
    assert np.isnan(y[0, :64]).all() and np.isfinite(y[0, 64:]).all()


@pytest.mark.parametrize(("width", "block"), [(64, 3), (64, 0), (64, -64), (96, 64), (0, 64)])
def test_blocks_that_do_not_fit(width: int, block: int) -> None:
    with pytest.raises(FormatError, match="rotation block"):
        rotate(np.zeros((1, width), np.float32), block)


# llama-kv-cache.cpp: K's block starts at 64 and doubles while it divides the head; V's is 64; neither without
# % 64.
@pytest.mark.parametrize(
    ("head_dim", "k", "v"),
    [
        (64, 64, 64),
        (128, 128, 64),
        (192, 64, 64),
        (256, 256, 64),
        (320, 64, 64),
        (512, 512, 64),
        (576, 64, 64),
        (80, None, None),
        (96, None, None),
        (32, None, None),
        (0, None, None),
    ],
)
def test_llama_block(head_dim: int, k: int | None, v: int | None) -> None:
    assert (llama_block(head_dim, "k"), llama_block(head_dim, "v")) == (k, v)


def test_rotated_format_packs_rotated_values() -> None:
    x = np.random.default_rng(0).standard_normal((6, 128)).astype(np.float32)
    x[:, 9] *= 60  # one outlier channel ruins its block of 32 unless it is spread
    plain = get_format("q4_0")
    fmt = Rotated(plain, 128)
    assert (fmt.name, fmt.n_bytes(128)) == ("q4_0+h128", plain.n_bytes(128))
    packed = fmt.quantize(x)
    np.testing.assert_array_equal(packed, plain.quantize(rotate(x, 128)))
    np.testing.assert_array_equal(fmt.dequantize(packed, 128), unrotate(plain.dequantize(packed, 128), 128))
    errors = [float(np.mean((f.dequantize(f.quantize(x), 128)[:, :9] - x[:, :9]) ** 2)) for f in (fmt, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_rotated_format_checks_both_widths() -> None:
    with pytest.raises(FormatError, match="power of two"):
        Rotated(get_format("q4_0"), 96)
    with pytest.raises(FormatError, match="multiple of the rotation block"):
        Rotated(get_format("q4_0"), 128).n_bytes(192)
    with pytest.raises(FormatError, match="blocks of 32"):
        Rotated(get_format("q4_0"), 16).n_bytes(48)
