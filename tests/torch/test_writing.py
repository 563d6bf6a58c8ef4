"""A policy as a function on K and V tensors."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvquant.errors import FormatError, TransformError  # noqa: E402
from kvquant.formats.hadamard import Rotated, rotate, unrotate  # noqa: E402
from kvquant.formats.registry import get_format  # noqa: E402
from kvquant.model.shape import LayerShape, ModelShape  # noqa: E402
from kvquant.policy import parse_policy  # noqa: E402
from kvquant.torch import QuantizedKV, storage_format  # noqa: E402
from kvquant.torch.writing import stored  # noqa: E402
from kvquant.transform import KINDS, KVTransform, ModelId, fit_layer, measure  # noqa: E402
from kvquant.transform.order import BLOCK, PROVENANCE_KEY, ordered_layer  # noqa: E402


def heads(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 5, 2, 64, generator=torch.Generator().manual_seed(seed))


SHAPE = ModelShape("tiny", "qwen3", 4096, (LayerShape(4, 2, 64, 64),) * 2)


def write(policy: str, *, turned: bool = True) -> QuantizedKV:
    return QuantizedKV(parse_policy(policy).resolve(SHAPE), rotate=turned)


def test_llama_cpp_types_are_rotated_and_others_are_not():
    assert storage_format("q4_0", 64, "k") == Rotated(get_format("q4_0"), 64)
    assert storage_format("q4_0", 192, "k") == Rotated(get_format("q4_0"), 64)
    assert storage_format("q4_0", 128, "v") == Rotated(get_format("q4_0"), 64)
    assert storage_format("q4_0", 64, "k", rotate=False) == get_format("q4_0")
    assert storage_format("q4_0", 96, "k") == get_format("q4_0")
    for name in ("f16", "bf16", "f32", "tq_mse_3b"):
        assert storage_format(name, 64, "k") == get_format(name)


def test_heads_that_cannot_be_packed_are_refused():
    with pytest.raises(FormatError):
        storage_format("q4_0", 48, "k")


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "f16", "tq_mse_2b"])
def test_each_head_vector_goes_through_the_format(name):
    k, v = heads(1), heads(2)
    found = write(f"*:{name}", turned=False)(1, k, k, v)
    for values, result in zip((k, v), found, strict=True):
        storage = get_format(name)
        expected = storage.dequantize(storage.quantize(values.numpy()), 64)
        np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-6)


def test_rotation_happens_before_packing_and_is_undone_after():
    k = heads()
    found, _ = write("*:q4_0")(0, k, k, k)
    storage = get_format("q4_0")
    expected = unrotate(storage.dequantize(storage.quantize(rotate(k, 64)), 64), 64)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.equal(found, write("*:q4_0", turned=False)(0, k, k, k)[0])


def test_rotation_helps_where_one_channel_is_large():
    k = heads()
    k[..., 7] *= 40
    errors = [
        float((write("*:q4_0", turned=turned)(0, k, k, k)[0] - k).square().mean()) for turned in (True, False)
    ]
    assert errors[0] < errors[1]


def test_sides_and_layers_are_kept_apart():
    k, v = heads(1), heads(2)
    policy = write("1:k=q4_0/v=f32,0:f32")
    k0, v0 = policy(0, k, k, v)
    k1, v1 = policy(1, k, k, v)
    assert torch.equal(k0, k)
    assert torch.equal(v0, v)
    assert torch.equal(v1, v)
    assert not torch.equal(k1, k)


def test_packing_twice_changes_nothing_more():
    k = heads()
    once = stored(k, get_format("q8_0"))
    torch.testing.assert_close(stored(once, get_format("q8_0")), once, rtol=0, atol=2e-3)


def test_other_float_types_keep_their_dtype():
    assert stored(heads().to(torch.bfloat16), get_format("q8_0")).dtype is torch.bfloat16


def transform_for(kind: str, arch: str = "qwen3") -> KVTransform:
    rng = np.random.default_rng(7)
    scale = np.exp(rng.standard_normal((2, 64)))
    moments = measure(1, rng.standard_normal((200, 2, 64)) * scale + 9, rng.standard_normal((200, 4, 64)))
    return KVTransform(ModelId("", arch, 2, 1), (fit_layer(moments, kind),))


@pytest.mark.parametrize("kind", KINDS)
def test_a_transform_is_done_before_packing_and_undone_after(kind):
    transform, k = transform_for(kind), heads() + 9
    write = QuantizedKV(parse_policy("*:q4_0").resolve(SHAPE), transform=transform)
    found, v = write(1, k, k, k)
    (layer,) = transform.layers
    expected = layer.undo_k(stored(layer.apply_k(k), storage_format("q4_0", 64, "k")))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    plain = QuantizedKV(parse_policy("*:q4_0").resolve(SHAPE))
    torch.testing.assert_close(v, plain(1, k, k, k)[1], rtol=0, atol=0)
    assert (found - k).square().mean() < (plain(1, k, k, k)[0] - k).square().mean() / 4
    torch.testing.assert_close(write(0, k, k, k), plain(0, k, k, k), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_type_keeps_keys_under_a_transform(kind):
    k = heads() + 9
    write = QuantizedKV(parse_policy("*:f32").resolve(SHAPE), transform=transform_for(kind))
    torch.testing.assert_close(write(1, k, k, k)[0], k, rtol=1e-4, atol=1e-4)


def test_the_types_of_coded_blocks_are_always_rotated():
    for name in ("tq3", "tq2"):
        for turned in (True, False):
            assert storage_format(name, 128, "k", rotate=turned) == Rotated(get_format(name), 128)
            assert storage_format(name, 128, "v", rotate=turned) == Rotated(get_format(name), 64)
    for name in ("k5x3", "k4x2"):
        assert storage_format(name, 128, "k") == Rotated(get_format(name), 32)
    with pytest.raises(FormatError, match="tq3 packs blocks of 64 values"):
        storage_format("tq3", 96, "v")


def test_types_that_want_an_order_are_refused_without_one():
    policy = parse_policy("*:k=k5x3/v=tq3").resolve(SHAPE)
    k, q = np.random.default_rng(0).standard_normal((2, 40, 2, 64)).astype(np.float32)
    moments = [measure(layer, k, q) for layer in (0, 1)]
    fitted = [fit_layer(found, "balanced") for found in moments]
    model = ModelId("0" * 64, "qwen3", 2, 1)
    for transform in (None, KVTransform(model, tuple(fitted))):
        with pytest.raises(
            TransformError, match="layer 0: k5x3 needs a transform that orders the dimensions"
        ):
            QuantizedKV(policy, transform=transform)
    with pytest.raises(TransformError, match="k4x2 is a type for K alone"):
        QuantizedKV(parse_policy("*:k=q8_0/v=k4x2").resolve(SHAPE))
    layers = tuple(ordered_layer(*pair) for pair in zip(fitted, moments, strict=True))
    ordered = KVTransform(model, layers, {PROVENANCE_KEY: BLOCK})
    found, _ = QuantizedKV(policy, transform=ordered)(0, torch.tensor(q), torch.tensor(k), torch.tensor(k))
    lost = float(((found.numpy() - k) ** 2).mean() / (k**2).mean())
    assert lost < 0.05
