"""The JSON document of `kvquant memory --json`: the keys that analyses use too, without their errors."""

from __future__ import annotations

from typing import Any

from kvquant.errors import KVQuantError
from kvquant.formats.registry import get_format
from kvquant.memory.cells import ContextOptions
from kvquant.memory.kv import KVMemory, LayerMemory, memory_of
from kvquant.model.shape import LayerShape, ModelShape
from kvquant.policy import ResolvedPolicy, parse_policy

BASELINES = ("f16", "q8_0", "q4_0")


def uniform_memory(shape: ModelShape, type_name: str, options: ContextOptions) -> KVMemory:
    """Return the memory with every cached layer in one type. Raises as `memory_of` does."""
    return memory_of(shape, parse_policy(f"*:{type_name}").resolve(shape), options)


def baselines(shape: ModelShape, options: ContextOptions) -> dict[str, KVMemory]:
    """Return the memory of each uniform type of BASELINES that llama.cpp would take here."""
    found = {}
    for name in BASELINES:
        try:
            found[name] = uniform_memory(shape, name, options)
        except KVQuantError:
            continue
    return found


def memory_document(
    shape: ModelShape, policy: ResolvedPolicy, policy_text: str, options: ContextOptions
) -> dict[str, Any]:
    """Return the document for one policy, ``policy_text`` its canonical form. Raises as `memory_of` does."""
    memory = memory_of(shape, policy, options)
    in_f16 = uniform_memory(shape, "f16", options).kv_bytes
    return {
        "model": shape.name,
        "policy": policy_text,
        "n_ctx": memory.cells.n_ctx,
        "context": {
            "n_ctx_seq": memory.cells.n_ctx_seq,
            "n_parallel": options.n_parallel,
            "kv_unified": options.kv_unified,
            "swa_full": options.swa_full,
            "n_batch": options.n_batch,
            "n_ubatch": options.n_ubatch,
            "flash_attn": options.flash_attn,
        },
        "layers": [_layer(shape.layers[layer.layer], layer) for layer in memory.layers],
        "total": {
            "runnable": not memory.not_runnable,
            **_total(memory, in_f16),
            "recurrent_bytes": memory.recurrent_bytes,
        },
        "baselines": {name: _total(uniform, in_f16) for name, uniform in baselines(shape, options).items()},
        "warnings": [str(warning) for warning in policy.warnings],
    }


def _total(memory: KVMemory, in_f16: int) -> dict[str, Any]:
    return {
        "kv_bytes": memory.kv_bytes,
        "kv_bytes_f16": in_f16,
        "ratio_vs_f16": memory.kv_bytes / in_f16 if in_f16 else None,
    }


def _layer(shape: LayerShape, memory: LayerMemory) -> dict[str, Any]:
    return {
        "layer": memory.layer,
        "kv_index": memory.kv_index,
        "n_cells": memory.n_cells,
        "window": shape.window,
        "k": _side(memory.k_type, shape.head_dim_k, memory.k_bytes),
        # Under multi-head latent attention V is a part of K: there is nothing to describe.
        "v": _side(memory.v_type, shape.head_dim_v, memory.v_bytes) if shape.stores_v else None,
    }


def _side(type_name: str, head_dim: int, n_bytes: int) -> dict[str, Any]:
    return {
        "type": type_name,
        "bits_per_value": get_format(type_name).bits_per_value(head_dim),
        "bytes": n_bytes,
    }
