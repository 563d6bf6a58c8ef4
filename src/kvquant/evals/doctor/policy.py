"""A policy against the model it is meant for: rules without effect, types that cannot run, coarse ones."""

from __future__ import annotations

from collections.abc import Sequence

from kvquant.errors import FormatError
from kvquant.evals.doctor.finding import Finding, Severity
from kvquant.evals.doctor.key_bias import COARSE_TYPES
from kvquant.formats.registry import not_in_llama
from kvquant.llama.state import GGML_TYPE_NAMES
from kvquant.memory import check_types
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedPolicy

_RUNNABLE = frozenset(GGML_TYPE_NAMES.values())
TYPES = "types"
"""The subject of a finding about types that cannot run on a model at all."""

_TILED = (("f16", "f16"), ("f32", "f32"))
"""(K, V) types that the tiled CPU flash attention of the pin takes; ggml/src/ggml-cpu/ops.cpp. The patch
0004-kv-attention has no such list."""


def check_policy(shape: ModelShape, policy: ResolvedPolicy, unrotated: Sequence[str] = ()) -> list[Finding]:
    """Find what a policy does to this model that its author may not expect.

    unrotated: what is to be said about layers stored without rotation (`kvquant.memory.not_rotated`).
    """
    findings = [
        Finding(
            Severity.WARNING, "policy", str(warning).removeprefix("policy: "), "see kvquant policy --help"
        )
        for warning in policy.warnings
    ]
    used = {name for layer in policy.layers for name in (layer.k_type, layer.v_type)}
    unknown = sorted(used - _RUNNABLE)
    if unknown:
        what = f"{not_in_llama(unknown)}: it can be analysed but not run"
        findings.append(Finding(Severity.FIX, "policy", what, f"use one of {', '.join(sorted(_RUNNABLE))}"))
    try:
        check_types(shape, policy)
    except FormatError as error:
        what, _, fix = str(error).rpartition("; ")
        return [*findings, Finding(Severity.FIX, TYPES, what, fix)]
    for line in unrotated:
        coarse = any({layer.k_type, layer.v_type} & set(COARSE_TYPES) for layer in policy.layers)
        severity, fix = (Severity.WARNING, "use q8_0 or f16 there") if coarse else (Severity.NOTE, "")
        findings.append(Finding(severity, "policy", line, fix))
    coarse_keys = [layer for layer in policy.layers if layer.k_type in COARSE_TYPES]
    if coarse_keys:
        what = (
            f"K has fewer than 8 bits in {len(coarse_keys)} of {len(policy.layers)} layers: on real models "
            "that costs between a hundredth of a nat and a broken model (docs/claims.md)"
        )
        findings.append(
            Finding(Severity.NOTE, "policy", what, "measure it with kvquant divergence, beside k8v4")
        )
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
