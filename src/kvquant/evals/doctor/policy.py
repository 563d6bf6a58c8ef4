"""A policy against the model it is meant for: rules without effect, types that cannot run, coarse ones."""

from __future__ import annotations

from kvquant.evals.doctor.finding import Finding, Severity
from kvquant.evals.doctor.key_bias import COARSE_TYPES
from kvquant.llama.state import GGML_TYPE_NAMES
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedPolicy

_RUNNABLE = frozenset(GGML_TYPE_NAMES.values())
_ROTATED_MULTIPLE = 64
"""llama.cpp rotates quantized K and V whose head dim is a multiple of this; llama_kv_cache's constructor in
src/llama-kv-cache.cpp at the pin."""

_TILED = (("f16", "f16"), ("f32", "f32"))
"""(K, V) types that the tiled CPU flash attention of the pin takes; ggml/src/ggml-cpu/ops.cpp. The patch
0004-kv-attention has no such list."""


def check_policy(shape: ModelShape, policy: ResolvedPolicy) -> list[Finding]:
    """Find what a policy does to this model that its author may not expect."""
    findings = [
        Finding(
            Severity.WARNING, "policy", str(warning).removeprefix("policy: "), "see kvquant policy --help"
        )
        for warning in policy.warnings
    ]
    used = {name for layer in policy.layers for name in (layer.k_type, layer.v_type)}
    unknown = sorted(used - _RUNNABLE)
    if unknown:
        what = f"llama.cpp has no cache of type {', '.join(unknown)}: it can be analysed and not run"
        findings.append(Finding(Severity.FIX, "policy", what, f"use one of {', '.join(sorted(_RUNNABLE))}"))
    unrotated = [
        layer.layer
        for layer in policy.layers
        if layer.k_type in COARSE_TYPES and shape.layers[layer.layer].head_dim_k % _ROTATED_MULTIPLE
    ]
    if unrotated:
        head_dim = shape.layers[unrotated[0]].head_dim_k
        what = (
            f"K has fewer than 8 bits in {len(unrotated)} layers whose head dim, {head_dim}, is no multiple "
            f"of {_ROTATED_MULTIPLE}: llama.cpp does not rotate it, and outlier channels spoil it"
        )
        findings.append(Finding(Severity.WARNING, "policy", what, "use q8_0 for K"))
    slow = [layer for layer in policy.layers if _is_slow(layer.k_type, layer.v_type)]
    if slow:
        what = (
            f"{len(slow)} of {len(policy.layers)} layers have types that stock llama.cpp attends to row by "
            "row on the CPU, several times slower in prefill; the patched build has fast kernels for all"
        )
        findings.append(Finding(Severity.NOTE, "policy", what))
    return findings


def _is_slow(k_type: str, v_type: str) -> bool:
    return {k_type, v_type} <= _RUNNABLE and (k_type, v_type) not in _TILED
