"""What an implementation of attention must do. Each check raises AssertionError: see test_meta.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from attention_op import FLOATS, AttentionCase, Rounding, exact_attention

Float32Array = npt.NDArray[np.float32]
Attention = Callable[[AttentionCase, int], Float32Array]
"""Takes a case and a number of threads."""


def check_accuracy(
    case: AttentionCase, ours: Float32Array, stock: Float32Array, rounding: Rounding = FLOATS
) -> None:
    """``ours`` is as near to attention in float64 as ``stock`` is, or as float32 arithmetic allows.

    rounding: what it may round beyond that.
    """
    exact = exact_attention(case, rounding)
    assert np.isfinite(ours).all(), f"{np.count_nonzero(~np.isfinite(ours))} of {ours.size} are not finite"
    error = np.abs(ours - exact.output)
    worst_of_stock = np.abs(stock - exact.output).max(axis=-1, keepdims=True)
    allowed = np.maximum(exact.tolerance, np.where(np.isfinite(worst_of_stock), worst_of_stock, np.inf))
    excess = error - allowed
    at = np.unravel_index(np.argmax(excess), excess.shape)
    assert excess[at] <= 0, (
        f"(stream, token, head, value) {tuple(int(i) for i in at)}: {ours[at]!r} for {exact.output[at]!r}, "
        f"stock {stock[at]!r}, off by {error[at]:.3g}, allowed {allowed[at]:.3g}; "
        f"{np.count_nonzero(excess > 0)} of {excess.size} are off"
    )


def check_threads(attention: Attention, case: AttentionCase, n_threads: int) -> None:
    """``n_threads`` compute what one computes, bit for bit."""
    one, many = attention(case, 1), attention(case, n_threads)
    differ = one.view(np.uint32) != many.view(np.uint32)
    assert not differ.any(), f"{np.count_nonzero(differ)} of {differ.size} differ for {n_threads} threads"
