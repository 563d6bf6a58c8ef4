"""Proof: what the patched server cannot do under a policy it says in one line, before it serves anything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kvquant.errors import LlamaError, PolicyError
from kvquant.formats.registry import CACHE_TYPES
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.policy import parse_policy
from llama.proof import PATCHED, needs_patched, small
from write_random_gguf import RandomModel, write_random_gguf

Model = Callable[[str], Path]


def refusal(options: ServerOptions) -> str:
    """The one line with which a server refuses to start."""
    assert PATCHED is not None
    with pytest.raises(LlamaError) as raised:
        LlamaServer(PATCHED, options).stop()
    message = str(raised.value)
    assert "\n" not in message and "GGML_ASSERT" not in message, message
    return message


@needs_patched
@pytest.mark.parametrize(
    "text", ["", " ", "0", "0:q9_0", "5-3:q8_0", "0:q8_0,0:f16", "99999:q8_0", "0:k=q8_0/k=f16"]
)
def test_a_malformed_policy(text: str, proof_model: Model) -> None:
    with pytest.raises(PolicyError) as expected:
        parse_policy(text, CACHE_TYPES)
    message = refusal(small(proof_model("llama"), kv_layers=text))
    assert f"column {expected.value.column}" in message, message


@needs_patched
def test_a_layer_named_both_ways(proof_model: Model) -> None:
    assert "layer 3" in refusal(small(proof_model("qwen35"), kv_layers="3:q8_0,kv0:f16"))


@needs_patched
def test_latent_attention(proof_model: Model) -> None:
    message = refusal(small(proof_model("deepseek2"), kv_layers="*:q8_0"))
    assert "--kv-layers is not supported here" in message and "MLA" in message


@needs_patched
def test_quantized_v_without_flash_attention(proof_model: Model) -> None:
    options = small(proof_model("llama"), kv_layers="2:v=q8_0", extra=("--flash-attn", "off"))
    assert "layer 2: V type q8_0 requires flash attention" in refusal(options)


@needs_patched
def test_a_head_no_block_divides(tmp_path: Path) -> None:
    model = write_random_gguf(
        tmp_path / "narrow.gguf", RandomModel(arch="llama", n_layer=3, head_dim=48, n_ff=64)
    )
    assert "layer 1: K type q8_0 has blocks of 32" in refusal(small(model, kv_layers="1:k=q8_0"))


@needs_patched
@pytest.mark.parametrize(
    ("policy", "code"), [("40:q8_0", "clipped"), ("40-:q8_0", "no-effect"), ("0-2:q4_0", "no-effect")]
)
def test_a_rule_without_effect_is_a_warning(policy: str, code: str, proof_model: Model) -> None:
    """Named here by code; the wording is llama.cpp's own."""
    assert PATCHED is not None
    with LlamaServer(PATCHED, small(proof_model("qwen35"), kv_layers=policy)) as server:
        warnings = [
            line for line in server.log_text().splitlines() if " W " in line and "--kv-layers" in line
        ]
    assert warnings, code


@needs_patched
def test_the_vector_file_is_what_the_server_reads(proof_model: Model) -> None:
    """A few accepted cases, through the server's own parser to its log; kv-layers-test runs all of them."""
    path = Path(__file__).parent.parent / "vectors" / "policy.json"
    cases = [case for case in json.loads(path.read_text())["parse"] if "canonical" in case]
    # Rules that count from both ends may meet on a model of few layers.
    cases = [case for case in cases if "last" not in case["canonical"] or "," not in case["canonical"]]
    assert PATCHED is not None
    for case in cases[::12]:
        with LlamaServer(PATCHED, small(proof_model("llama"), kv_layers=case["text"])) as server:
            logged = re.search(r"kv_layers += (.*)\n", server.log_text())
        assert logged is not None and logged[1] == case["canonical"]
