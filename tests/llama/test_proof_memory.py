"""Proof: what the patched server allocates for each layer is what kvquant computed, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kvquant.llama.logs import KVLog, LoggedTensor
from kvquant.llama.server import LlamaServer
from kvquant.memory import ContextOptions, KVMemory, memory_of
from kvquant.model.architectures import read_shape
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy
from llama.proof import PATCHED, WITH_V, needs_patched, small
from memory.fixtures import RANDOM_MODELS
from write_random_gguf import write_random_gguf

Model = Callable[[str], Path]

QUANTIZED_HEADS = 64
"""The patch and stock rotate quantized K and V whose head width this divides."""


@dataclass(frozen=True)
class Case:
    """A policy, the types of what it does not name, and the context it runs in."""

    policy: str
    options: ContextOptions
    k_type: str = "f16"
    v_type: str = "f16"

    def __str__(self) -> str:
        o = self.options
        return f"{self.policy} over {self.k_type}-{self.v_type} c{o.n_ctx} np{o.n_parallel} kvu{o.kv_unified}"


CASES = (
    Case("0-1:q8_0,2-:q4_0", ContextOptions(512)),
    Case("kv0:q8_0", ContextOptions(1000, n_parallel=3), "q4_0", "q5_1"),
    Case("1:k=f32/v=bf16,2:k=q5_0,3-4:v=iq4_nl", ContextOptions(2048, n_parallel=2, kv_unified=True), "q8_0"),
    Case("*:k=q8_0/v=q4_1", ContextOptions(4096, swa_full=True, n_ubatch=64)),
    Case("kv0-kv1:f16,kv2-:q4_0", ContextOptions(300, n_parallel=2), "f32", "f32"),
)


def problems(shape: ModelShape, memory: KVMemory, log: KVLog) -> list[str]:
    """Every way in which the logged layers are not the computed ones."""
    found = []
    logged = {layer.layer: layer for layer in log.layers}
    if tuple(logged) != shape.kv_layers:
        found.append(f"logged layers {tuple(logged)}, layers with a cache {shape.kv_layers}")
    for layer in memory.layers:
        entry = logged.get(layer.layer)
        if entry is None:
            continue
        axes = shape.layers[layer.layer]
        k = LoggedTensor(layer.k_type, layer.k_bytes, _rotated(layer.k_type, axes.head_dim_k))
        v = LoggedTensor(layer.v_type, layer.v_bytes, _rotated(layer.v_type, axes.head_dim_v))
        found += [
            f"layer {layer.layer} {side}: logged {there}, computed {computed}"
            for side, there, computed in (("K", entry.k, k), ("V", entry.v, v))
            if there != computed
        ]
    if log.n_bytes != memory.kv_bytes:
        found.append(f"logged {log.n_bytes} bytes in all, computed {memory.kv_bytes}")
    buffers = sum(log.buffers_mib)
    if abs(buffers - memory.kv_bytes / 2**20) > 0.005 * len(log.buffers_mib) + 1e-9:
        found.append(f"KV buffers of {buffers} MiB, computed {memory.kv_bytes / 2**20} MiB")
    return found


def _rotated(type_name: str, head_dim: int) -> bool:
    return type_name not in ("f32", "f16", "bf16") and head_dim % QUANTIZED_HEADS == 0


@needs_patched
@pytest.mark.parametrize("arch", WITH_V)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layers_bytes_are_the_computed_ones(arch: str, case: Case, proof_model: Model) -> None:
    model = proof_model(arch)
    shape = read_shape(model)
    o = case.options
    extra = ["--kv-unified" if o.kv_unified else "--no-kv-unified", "--ubatch-size", str(o.n_ubatch)]
    options = small(
        model,
        n_ctx=o.n_ctx,
        n_parallel=o.n_parallel,
        k_type=case.k_type,
        v_type=case.v_type,
        kv_layers=case.policy,
        extra=(*extra, *(["--swa-full"] if o.swa_full else [])),
    )
    assert PATCHED is not None
    with LlamaServer(PATCHED, options) as server:
        log = server.kv_log()
    resolved = parse_policy(case.policy).resolve(shape, case.k_type, case.v_type)
    memory = memory_of(shape, resolved, o)
    found = problems(shape, memory, log)
    assert not found, "\n".join([f"{arch}, {case}:", *found])
    first = memory.layers[0]
    wrong = replace(memory, layers=(replace(first, v_bytes=first.v_bytes + 1), *memory.layers[1:]))
    assert len(problems(shape, wrong, log)) == 2, "a byte too many in one layer would not be seen"


@needs_patched
@pytest.mark.parametrize("arch", sorted(arch for arch in RANDOM_MODELS if arch != "deepseek2"))
def test_every_architecture_under_a_policy(arch: str, tmp_path: Path) -> None:
    model = write_random_gguf(tmp_path / f"{arch}.gguf", RANDOM_MODELS[arch])
    shape = read_shape(model)
    policy = "kv0:q8_0,kv2-:k=q5_1/v=q4_0"
    assert PATCHED is not None
    with LlamaServer(PATCHED, small(model, n_ctx=1024, kv_layers=policy)) as server:
        log = server.kv_log()
    memory = memory_of(shape, parse_policy(policy).resolve(shape), ContextOptions(1024))
    found = problems(shape, memory, log)
    assert not found, "\n".join([f"{arch}:", *found])


@needs_patched
@pytest.mark.parametrize("arch", ["deepseek2"])
def test_latent_attention_keeps_no_v(arch: str, proof_model: Model) -> None:
    model = proof_model(arch)
    shape = read_shape(model)
    assert PATCHED is not None
    with LlamaServer(PATCHED, small(model, n_ctx=1024, k_type="q8_0", v_type="q8_0")) as server:
        log = server.kv_log()
    memory = memory_of(shape, parse_policy("*:q8_0").resolve(shape), ContextOptions(1024))
    assert [(layer.layer, layer.k.n_bytes, layer.v) for layer in log.layers] == [
        (layer.layer, layer.k_bytes, None) for layer in memory.layers
    ]
    assert log.n_bytes == memory.kv_bytes
