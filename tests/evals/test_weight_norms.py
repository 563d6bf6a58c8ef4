"""Norms of projections against the gguf package's own reader, in several types, and files that lack them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import quantize

from kvquant.evals.weight_norms import projection_norms
from kvquant.model.gguf_file import open_model

MODEL = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"


def test_the_reference_model() -> None:
    found = projection_norms(open_model(MODEL))
    assert set(found) == {(layer, side) for layer in range(32) for side in "kv"}
    for tensor in gguf.GGUFReader(MODEL).tensors:
        if tensor.name == "blk.3.attn_k.weight":
            assert found[3, "k"] == pytest.approx(np.linalg.norm(tensor.data.astype(np.float64)))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_every_type_that_gguf_decodes(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    number = gguf.GGMLQuantizationType[kind]
    for name, scale in (
        ("blk.0.attn_k.weight", 2.0),
        ("blk.0.attn_v.weight", 1.0),
        ("blk.0.attn_q.weight", 1.0),
    ):
        data = quantize(values * scale, number)
        writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=number)
    writer.add_tensor("blk.1.attn_k.weight", np.full((2, 32), np.nan, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = projection_norms(open_model(path))
    assert set(found) == {(0, "k"), (0, "v")}  # what is not finite says nothing
    assert found[0, "k"] == pytest.approx(2 * np.linalg.norm(values), rel=0.02)
    assert found[0, "k"] == pytest.approx(2 * found[0, "v"], rel=0.02)
