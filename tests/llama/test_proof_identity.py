"""Proof: without a policy the patched server is the stock server, and a uniform policy is -ctk and -ctv.

Compared are the log probabilities of the whole vocabulary for each generated token as the server prints
them, every byte of the saved slot, and the cache sizes in the log. Attention is computed by llama.cpp's own
code, also in the patched server: kv-attn adds in another order, `test_proof_attention.py` is about that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvquant.llama.server import ServerOptions
from llama.proof import MODELS, PATCHED, STOCK, WITH_V, Outcome, needs_both, run, small

Model = Callable[[str], Path]


def plain_attention(model: Path, **changes: Any) -> ServerOptions:
    return small(model, kv_attention=False, **changes)


def differences(left: Outcome, right: Outcome) -> list[str]:
    """What two runs do not have in common."""
    found = []
    if left.answer["content"] != right.answer["content"]:
        found.append(f"text {left.answer['content']!r} and {right.answer['content']!r}")
    if left.probabilities != right.probabilities:
        found.append("log probabilities")
    if left.saved != right.saved:
        found.append(f"saved slots of {len(left.saved)} and {len(right.saved)} bytes")
    if left.log.caches != right.log.caches or left.log.buffers_mib != right.log.buffers_mib:
        found.append(f"logged caches {left.log.caches} and {right.log.caches}")
    return found


@needs_both
@pytest.mark.parametrize(
    ("arch", "k_type", "v_type"),
    [
        *((arch, name, name) for arch in MODELS for name in ("f16", "q8_0")),
        *(
            (arch, k_type, v_type)
            for arch in WITH_V
            for k_type, v_type in (("q8_0", "q4_0"), ("f32", "bf16"))
        ),
    ],
)
def test_no_policy_no_change(arch: str, k_type: str, v_type: str, proof_model: Model) -> None:
    options = plain_attention(proof_model(arch), k_type=k_type, v_type=v_type)
    assert not differences(run(STOCK, options), run(PATCHED, options))


@needs_both
@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
@pytest.mark.parametrize(
    "extra", [("--flash-attn", "off"), ("--swa-full",), ("--ubatch-size", "32")], ids=" ".join
)
def test_no_policy_no_change_under_other_options(
    arch: str, extra: tuple[str, ...], proof_model: Model
) -> None:
    options = plain_attention(proof_model(arch), extra=extra)
    assert not differences(run(STOCK, options), run(PATCHED, options))


@needs_both
@pytest.mark.parametrize("arch", WITH_V)
@pytest.mark.parametrize(("k_type", "v_type"), [("q8_0", "q8_0"), ("q5_1", "q4_0"), ("f16", "iq4_nl")])
def test_a_uniform_policy_is_the_two_types(arch: str, k_type: str, v_type: str, proof_model: Model) -> None:
    model = proof_model(arch)
    plain = run(STOCK, plain_attention(model, k_type=k_type, v_type=v_type))
    policies = (
        f"*:k={k_type}/v={v_type}",
        f"kv0-:v={v_type}/k={k_type}",
        f"0-1:k={k_type}/v={v_type},2-:k={k_type}/v={v_type}",
    )
    for policy in policies:
        found = run(PATCHED, plain_attention(model, kv_layers=policy))
        left = [difference for difference in differences(plain, found) if not difference.startswith("logged")]
        assert not left, f"{policy}: {left}"
        assert plain.log.buffers_mib == found.log.buffers_mib


@needs_both
def test_meta_a_difference_is_seen(proof_model: Model) -> None:
    model = proof_model("llama")
    plain = run(STOCK, plain_attention(model))
    for changed in (plain_attention(model, kv_layers="4:q8_0"), plain_attention(model, k_type="q8_0")):
        found = differences(plain, run(PATCHED, changed))
        assert any("probabilities" in difference for difference in found)
        assert any("saved slots" in difference for difference in found)
