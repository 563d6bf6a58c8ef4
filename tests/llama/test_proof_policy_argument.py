"""Proof: the patched server takes as --kv-layers what kvquant takes: presets, types, several lines, @FILE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvquant.errors import LlamaError
from kvquant.llama.server import LlamaServer
from kvquant.model.architectures import read_shape
from kvquant.policy import parse_policy
from llama.proof import PATCHED, needs_patched, small

Model = Callable[[str], Path]


@needs_patched
@pytest.mark.parametrize(
    "text",
    [
        "hybrid",
        "k8v4",
        "Q8_0",
        "first1:q8_0,last1:q8_0,rest:q4_0",
        "# the last one\nlast1:q8_0, # in 8 bits\r\nrest:q4_0\n",
        "kvlast1:k=q8_0,kvfirst1:v=q4_0",
    ],
)
@pytest.mark.parametrize("arch", ["llama", "qwen35"])
def test_the_server_stores_what_kvquant_says(
    arch: str, text: str, proof_model: Model, tmp_path: Path
) -> None:
    assert PATCHED is not None
    model = proof_model(arch)
    expected = parse_policy(text).resolve(read_shape(model))
    file = tmp_path / "policy.txt"
    file.write_text(text, encoding="utf-8-sig")
    for argument in (text, f"@{file}"):
        with LlamaServer(PATCHED, small(model, kv_layers=argument)) as server:
            layers = server.kv_log().layers
        assert [(layer.layer, layer.k_type, layer.v_type) for layer in expected.layers] == [
            (layer.layer, layer.k.type, layer.v.type if layer.v else None) for layer in layers
        ]


@needs_patched
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("@/nonexistent/policy", "the file cannot be read"),
        ("hybird", "unknown preset 'hybird'; known: hybrid, k8v4, f32"),
        ("0\u201310:q8_0", "write -"),
        ("0:q8_0,\n1:q9", "line 2, column 3: unknown type 'q9'"),
    ],
)
def test_the_server_says_what_is_wrong(argument: str, words: str, proof_model: Model) -> None:
    assert PATCHED is not None
    with pytest.raises(LlamaError) as refused:
        LlamaServer(PATCHED, small(proof_model("llama"), kv_layers=argument)).stop()
    assert words in str(refused.value)
