"""K, V and Q of a Torch run as a capture."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvquant.errors import CaptureError  # noqa: E402
from kvquant.model.capture import load_capture, save_capture  # noqa: E402
from kvquant.reference.tokenizer import encode  # noqa: E402
from reference_model.capture import capture  # noqa: E402

TEXT = " Facts: babo=100 nifu=101 Ask: babo"


def test_a_capture_holds_what_attention_reads(tiny_model):
    found = capture(tiny_model, TEXT, [3, 6])
    seen = {}

    def look(layer, q, k, v):
        seen[layer] = (q[0], k[0], v[0])
        return k, v

    with torch.inference_mode():
        tiny_model(torch.tensor([encode(TEXT)]), look)
    assert [layer.axes.layer for layer in found.layers] == [0, 1]
    for layer in found.layers:
        q, k, v = (x.numpy() for x in seen[layer.axes.layer])
        np.testing.assert_array_equal(layer.k, k)
        np.testing.assert_array_equal(layer.v, v)
        np.testing.assert_array_equal(layer.q, q[[3, 6]])
        assert layer.axes.logit_scale == 1 / 8


def test_a_capture_survives_its_file(tiny_model, tmp_path):
    found = capture(tiny_model, TEXT, [6], half=True)
    save_capture(found, tmp_path / "kv.npz")
    loaded = load_capture(tmp_path / "kv.npz")
    assert loaded.queries == "captured"
    assert loaded.layers[1].k.dtype == np.float16
    np.testing.assert_array_equal(loaded.layers[1].v, found.layers[1].v)


@pytest.mark.parametrize("positions", [[], [-1], [7]])
def test_queries_outside_the_text_are_refused(tiny_model, positions):
    with pytest.raises(CaptureError, match=r"0\.\.6"):
        capture(tiny_model, TEXT, positions)
