"""The order of dimensions for k5x3 and k4x2: which go where, and that attention does not see it."""

from __future__ import annotations

import numpy as np
import pytest

from kvquant.errors import TransformError
from kvquant.formats.storage import storage_format
from kvquant.transform import KINDS, Kind, KVTransform, ModelId, fit_layer, measure
from kvquant.transform.order import BLOCK, PROVENANCE_KEY, is_ordered, ordered_layer, places
from transform.checks import check_attention_unchanged, check_keys_come_back
from transform.test_properties import FLOAT32, ROUNDING


def keys_and_queries(width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """K (200, 2, width) and Q (100, 4, width) whose dimensions differ in energy by factors of hundreds."""
    random = np.random.default_rng(seed)
    spread = np.exp(1.5 * random.standard_normal((2, width)))
    mixing = random.standard_normal((2, width, width)) / 8 + np.eye(width)
    k = np.einsum("nhd,hde->nhe", random.standard_normal((200, 2, width)) * spread, mixing)
    return (k + 3).astype(np.float32), random.standard_normal((100, 4, width)).astype(np.float32)


@pytest.mark.parametrize("width", [64, 128, 192, 256])
def test_every_block_gets_its_share_of_strong_and_weak_dimensions(width: int) -> None:
    at = places(width)
    assert sorted(at) == list(range(width))
    blocks = at.reshape(-1, 2, BLOCK // 2)
    assert (blocks[:, 0] < width // 2).all() and (blocks[:, 1] >= width // 2).all()
    # Equal shares: the sums of ranks of two blocks differ by no more than one a value.
    assert np.ptp(blocks.sum(axis=2), axis=0).max() <= BLOCK // 2 * (width // BLOCK - 1)


@pytest.mark.parametrize("width", [0, 32, 80, 96])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(TransformError, match="multiples of 64"):
        places(width)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_the_stronger_half_comes_first_and_attention_stays(kind: Kind, width: int) -> None:
    k, q = keys_and_queries(width)
    moments = measure(0, k, q)
    plain = fit_layer(moments, kind)
    transform = ordered_layer(plain, moments)
    energy = np.mean(transform.apply_k(k.astype(np.float64)) ** 2, axis=0).reshape(2, -1, 2, BLOCK // 2)
    assert (energy[:, :, 0].min(axis=(1, 2)) >= energy[:, :, 1].max(axis=(1, 2)) * (1 - 1e-6)).all()
    before = np.sort(np.mean(plain.apply_k(k.astype(np.float64)) ** 2, axis=0), axis=1)
    np.testing.assert_allclose(np.sort(energy.reshape(2, -1), axis=1), before, rtol=1e-6)
    rounding = ROUNDING if kind == "balanced" else FLOAT32
    check_attention_unchanged(transform, k, q, rounding)
    check_keys_come_back(transform, k, rounding)


@pytest.mark.parametrize("name", ["k5x3", "k4x2"])
def test_halves_in_order_lose_less(name: str) -> None:
    k, q = keys_and_queries(128)
    moments = measure(0, k, q)
    plain = fit_layer(moments, "balanced")
    storage = storage_format(name, 128, "k")

    def lost(transform: object) -> float:
        changed = transform.apply_k(k)
        back = transform.undo_k(storage.dequantize(storage.quantize(changed), 128))
        logits = np.einsum("qhd,khd->hqk", q[:, ::2].astype(np.float64), (back - k).astype(np.float64))
        return float(np.mean(logits**2))

    random = np.random.default_rng(1)
    shuffled = plain.forward[:, random.permutation(128)]
    unordered = type(plain)(0, plain.centre, shuffled)
    assert lost(ordered_layer(plain, moments)) < lost(unordered) / 1.5


def test_a_transform_says_whether_it_orders() -> None:
    k, q = keys_and_queries(64)
    layer = fit_layer(measure(1, k, q), "balanced")
    model = ModelId("0" * 64, "llama", 2, 1)
    assert not is_ordered(KVTransform(model, (layer,)), 1)
    ordered = KVTransform(model, (layer,), {PROVENANCE_KEY: BLOCK})
    assert is_ordered(ordered, 1) and not is_ordered(ordered, 0)
