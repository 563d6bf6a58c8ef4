"""Each check of the property suite fails on a transform that is broken in the way it is there to find."""

from __future__ import annotations

import numpy as np
import pytest

from kvquant.transform import LayerTransform, fit_layer, measure
from transform.checks import Floats, check_attention_unchanged, check_keys_come_back

rng = np.random.default_rng(1)
K = rng.standard_normal((20, 2, 8)) * np.exp(rng.standard_normal((2, 8))) + 3
Q = rng.standard_normal((9, 4, 8))


class Broken:
    """A transform, with one of its three functions replaced."""

    def __init__(self, good: LayerTransform, fault: str) -> None:
        self._good, self._fault = good, fault

    def apply_k(self, k: Floats) -> Floats:
        if self._fault == "centre by position":
            return np.asarray(self._good.apply_k(k) + 0.01 * np.arange(len(k))[:, None, None])
        return np.asarray(self._good.apply_k(k))

    def undo_k(self, stored: Floats) -> Floats:
        if self._fault == "centre not added":
            return np.asarray(self._good.undo_k(stored) - self._good.centre)
        return np.asarray(self._good.undo_k(stored))

    def apply_q(self, q: Floats) -> Floats:
        if self._fault == "not transposed":
            matrix = np.linalg.inv(np.asarray(self._good.forward, dtype=np.float64))
            return np.einsum("hij,qhj->qhi", np.repeat(matrix, 2, axis=0), q)
        if self._fault == "heads interleaved":
            return np.asarray(self._good.apply_q(q[:, [0, 2, 1, 3]])[:, [0, 2, 1, 3]])
        return np.asarray(self._good.apply_q(q))


@pytest.mark.parametrize("fault", ["none", "centre by position", "not transposed", "heads interleaved"])
def test_attention_check_can_fail(fault: str) -> None:
    transform = Broken(fit_layer(measure(0, K, Q), "balanced"), fault)
    if fault == "none":
        check_attention_unchanged(transform, K, Q, 1e-6)
        return
    with pytest.raises(AssertionError, match="logits differ"):
        check_attention_unchanged(transform, K, Q, 1e-6)


def test_keys_check_can_fail() -> None:
    good = fit_layer(measure(0, K, Q), "diagonal")
    check_keys_come_back(Broken(good, "none"), K, 1e-6)
    with pytest.raises(AssertionError, match="keys differ"):
        check_keys_come_back(Broken(good, "centre not added"), K, 1e-6)
