"""The transformers cache class, on tiny random models."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kvquant.errors import ShapeError, TransformError  # noqa: E402
from kvquant.formats.storage import storage_format  # noqa: E402
from kvquant.policy import parse_policy  # noqa: E402
from kvquant.torch.hf_cache import QuantizedCache, as_transformers_has_it, shape_from_config  # noqa: E402
from kvquant.torch.writing import stored  # noqa: E402
from kvquant.transform import KINDS, KVTransform, LayerTransform, ModelId, fit_layer, measure  # noqa: E402

N_LAYER = 3


@pytest.fixture(scope="module")
def config():
    return transformers.Qwen3Config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=N_LAYER,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=64,
        use_cache=True,
    )


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(1)
    return transformers.Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokens():
    return torch.arange(24)[None] * 7 % 97


def run(model, tokens, cache):
    with torch.inference_mode():
        return model(tokens, past_key_values=cache, use_cache=True).logits


def test_an_exact_type_changes_nothing(model, config, tokens):
    plain = run(model, tokens, transformers.DynamicCache(config=config))
    exact = run(model, tokens, QuantizedCache(config, parse_policy("*:f32")))
    torch.testing.assert_close(exact, plain, rtol=0, atol=0)


@pytest.mark.parametrize("policy", ["1:k=q4_0", "1:v=q4_0"])
def test_only_the_named_layer_and_side_is_changed(model, config, tokens, policy):
    exact = QuantizedCache(config, parse_policy("*:f32"))
    run(model, tokens, exact)
    changed = QuantizedCache(config, parse_policy(f"{policy},0:f32,2:f32"))
    run(model, tokens, changed)
    side = policy[2]
    kept = {"k": lambda layer: layer.keys, "v": lambda layer: layer.values}
    torch.testing.assert_close(kept[side](changed.layers[0]), kept[side](exact.layers[0]), rtol=0, atol=0)
    expected = stored(kept[side](exact.layers[1]), storage_format("q4_0", 64, side))
    torch.testing.assert_close(kept[side](changed.layers[1]), expected, rtol=0, atol=0)
    assert not torch.equal(kept[side](changed.layers[1]), kept[side](exact.layers[1]))


def test_decoding_token_by_token_keeps_what_one_prefill_keeps(model, config, tokens):
    at_once = QuantizedCache(config, parse_policy("*:q8_0"))
    logits = run(model, tokens, at_once)
    stepwise = QuantizedCache(config, parse_policy("*:q8_0"))
    steps = [run(model, tokens[:, i : i + 1], stepwise)[:, 0] for i in range(tokens.shape[1])]
    torch.testing.assert_close(torch.stack(steps, 1), logits, rtol=1e-3, atol=1e-3)
    assert stepwise.get_seq_length() == tokens.shape[1]


def test_half_precision_models_keep_their_dtype(config, tokens):
    half = QuantizedCache(config, parse_policy("*:q8_0"))
    run(transformers.Qwen3ForCausalLM(config).eval().to(torch.bfloat16), tokens, half)
    assert half.layers[0].keys.dtype is torch.bfloat16


def test_coarser_types_move_the_logits_further(model, config, tokens):
    plain = run(model, tokens, transformers.DynamicCache(config=config))
    moved = [
        float((run(model, tokens, QuantizedCache(config, parse_policy(f"*:{name}"))) - plain).abs().mean())
        for name in ("q8_0", "q5_0", "q4_0")
    ]
    assert 0 < moved[0] < moved[1] < moved[2]


def test_sliding_layers_keep_their_window():
    config = transformers.Gemma3TextConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=64,
    )
    torch.manual_seed(1)
    model = transformers.Gemma3ForCausalLM(config).eval()
    tokens = torch.arange(20)[None] * 7 % 97
    plain = run(model, tokens, transformers.DynamicCache(config=config))
    exact = QuantizedCache(config, parse_policy("*:f32"))
    torch.testing.assert_close(run(model, tokens, exact), plain, rtol=0, atol=0)
    assert exact.layers[0].is_sliding
    assert not exact.layers[1].is_sliding


def test_unknown_layer_kinds_are_named():
    other = transformers.Qwen3Config(num_hidden_layers=2)
    other.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ShapeError, match="linear_attention"):
        shape_from_config(other)


def transform_for(kind, arch="qwen3", layer=1):
    rng = np.random.default_rng(7)
    scale = np.exp(rng.standard_normal((2, 64)))
    k, q = rng.standard_normal((200, 2, 64)) * scale + 1, rng.standard_normal((200, 4, 64))
    return KVTransform(ModelId("", arch, N_LAYER, 1), (fit_layer(measure(layer, k, q), kind),))


@pytest.mark.parametrize("kind", KINDS)
def test_a_transform_leaves_exact_types_as_they_are(model, config, tokens, kind):
    plain = run(model, tokens, QuantizedCache(config, parse_policy("*:f32")))
    policy, transform = parse_policy("*:f32"), transform_for(kind)
    found = run(model, tokens, QuantizedCache(config, policy, transform=transform))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    coarse = parse_policy("*:k=q4_0/v=f32")
    with_it = run(model, tokens, QuantizedCache(config, coarse, transform=transform))
    assert not torch.equal(with_it, run(model, tokens, QuantizedCache(config, coarse)))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_moved_to_where_transformers_has_them(kind):
    (layer,) = transform_for(kind, "llama").layers
    (moved,) = as_transformers_has_it(transform_for(kind, "llama")).layers
    k = np.random.default_rng(2).standard_normal((5, 2, 64)).astype(np.float32)
    apart = np.concatenate([k[..., 0::2], k[..., 1::2]], axis=-1)
    stored_apart = moved.apply_k(apart)
    if kind != "balanced":  # a diagonal's stored channels move along, a matrix's are the same
        stored_apart = np.stack([stored_apart[..., :32], stored_apart[..., 32:]], axis=-1).reshape(k.shape)
    np.testing.assert_allclose(stored_apart, layer.apply_k(k), rtol=1e-4, atol=1e-4)
    assert as_transformers_has_it(transform_for(kind)).digest == transform_for(kind).digest


def test_a_transform_that_does_not_fit_is_refused(config):
    with pytest.raises(TransformError, match="known of gemma"):
        as_transformers_has_it(transform_for("centre", "mamba"))
    other = KVTransform(ModelId("", "qwen3", N_LAYER, 1), (LayerTransform(0, np.ones((3, 64))),))
    with pytest.raises(TransformError, match="3 KV heads of 64"):
        QuantizedCache(config, parse_policy("*:q4_0"), transform=other)
