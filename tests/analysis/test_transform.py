"""Analysis of a policy whose K goes through a transform, on the shipped capture of the reference model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvquant.analysis import Analysis, Sampling, analyze
from kvquant.analysis.captures import REFERENCE_CAPTURE, load_shipped_capture
from kvquant.errors import TransformError, UsageError
from kvquant.report.analysis import analysis_text
from kvquant.transform import KVTransform, LayerTransform, ModelId, fit_layer, measure, write_transform

CAPTURE = load_shipped_capture(REFERENCE_CAPTURE)
MODEL = ModelId("ab" * 32, CAPTURE.arch, CAPTURE.n_layer, 1)


def fitted(n_ctx: int = CAPTURE.n_tokens) -> KVTransform:
    layers = []
    for layer in CAPTURE.layers:
        assert layer.q is not None
        k, q = (x.astype(np.float64) for x in (layer.k, layer.q))
        layers.append(fit_layer(measure(layer.axes.layer, k, q), "diagonal"))
    return KVTransform(MODEL, tuple(layers), {"n_ctx": n_ctx})


def run(folder: Path, transform: KVTransform | None, policy: str = "*:q4_0", n_heads: int = 2) -> Analysis:
    path = None
    if transform is not None:
        path = folder / "t.gguf"
        write_transform(transform, path)
    sampling = Sampling(n_head_kv=n_heads)
    return analyze(policy, baselines=("q4_0",), rotation="on", sampling=sampling, transform=path)


@pytest.mark.parametrize("n_heads", [1, 2])
def test_the_policy_gains_and_the_baseline_stays(tmp_path: Path, n_heads: int) -> None:
    plain, found = (run(tmp_path, transform, n_heads=n_heads) for transform in (None, fitted()))
    assert plain.transform is None and found.transform is not None
    assert (found.transform.digest, found.transform.n_ctx) == (fitted().digest, CAPTURE.n_tokens)
    assert found.total.attn_kl is not None and plain.total.attn_kl is not None
    assert found.total.attn_kl < plain.total.attn_kl
    assert found.baselines == plain.baselines
    assert [layer.v for layer in found.layers] == [layer.v for layer in plain.layers]
    assert "K through transform t.gguf" in analysis_text(found) and "transform" not in analysis_text(plain)
    assert Analysis.from_json(found.to_json()) == found


def test_a_capture_deeper_than_it_was_calibrated_is_warned_of(tmp_path: Path) -> None:
    warnings = [run(tmp_path, fitted(n_ctx)).warnings for n_ctx in (CAPTURE.n_tokens, CAPTURE.n_tokens - 1)]
    assert [any("calibrated to" in line for line in found) for found in warnings] == [False, True]


def test_what_is_stored_exactly_stays_exact(tmp_path: Path) -> None:
    found = run(tmp_path, fitted(), "*:f32")
    assert found.total.attn_kl is not None and found.total.attn_kl < 1e-9


def test_only_layers_that_are_named_change(tmp_path: Path) -> None:
    whole = fitted()
    part = replace(whole, layers=whole.layers[:1])
    plain, found = (run(tmp_path, transform).layers for transform in (None, part))
    assert found[0].attn_kl != plain[0].attn_kl and found[1:] == plain[1:]


def test_what_does_not_belong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransformError, match="calibrate that model"):
        run(tmp_path, replace(fitted(), model=replace(MODEL, arch="other")))
    wrong = LayerTransform(CAPTURE.layers[0].axes.layer, np.ones((1, 2)))
    with pytest.raises(TransformError, match="1 KV heads of 2 values"):
        run(tmp_path, replace(fitted(), layers=(wrong,)))
    with pytest.raises(UsageError, match="synthetic keys"):
        analyze("*:q4_0", profile="typical", transform=tmp_path / "t.gguf")
