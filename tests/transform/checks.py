"""What must hold of any transform; each is shown to fail on a broken one in test_meta.py."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


class Transform(Protocol):
    """What the checks need of a transform."""

    def apply_k(self, k: Floats) -> Floats: ...
    def undo_k(self, stored: Floats) -> Floats: ...
    def apply_q(self, q: Floats) -> Floats: ...


def logits_of(k: Floats, q: Floats) -> npt.NDArray[np.float64]:
    """Return q·k, float64 (n_head, n_query, n_tokens)."""
    group = q.shape[1] // k.shape[1]
    keys = np.repeat(k.astype(np.float64), group, axis=1)
    return np.einsum("qhd,khd->hqk", q.astype(np.float64), keys)


def check_attention_unchanged(transform: Transform, k: Floats, q: Floats, rounding: float) -> None:
    """The logits, up to what is the same for every key of a query, are those without the transform.

    rounding: how far one value may be off, relative to the largest product that was summed.
    """
    before = logits_of(k, q)
    changed_k, changed_q = transform.apply_k(k.astype(np.float64)), transform.apply_q(q.astype(np.float64))
    after = logits_of(changed_k, changed_q)
    drift = (after - before) - (after - before)[..., :1]
    magnitude = logits_of(np.abs(k), np.abs(q)).max() + logits_of(np.abs(changed_k), np.abs(changed_q)).max()
    worst = float(np.abs(drift).max())
    assert worst <= rounding * magnitude, f"logits differ by {worst:g}, products are up to {magnitude:g}"


def check_keys_come_back(transform: Transform, k: Floats, rounding: float) -> None:
    """undo_k undoes apply_k, up to rounding."""
    exact = k.astype(np.float64)
    worst = float(np.abs(transform.undo_k(transform.apply_k(exact)) - exact).max())
    magnitude = float(np.abs(exact).max()) + float(np.abs(transform.undo_k(np.zeros_like(exact))).max())
    assert worst <= rounding * magnitude, f"keys differ by {worst:g}, they are up to {magnitude:g}"
