"""Preflight: what would spoil a run, before it is started. Checks return findings and change nothing."""

from kvquant.evals.doctor.finding import Finding, Severity
from kvquant.evals.doctor.key_bias import check_key_bias, key_bias_norms
from kvquant.evals.doctor.machine import check_machine
from kvquant.evals.doctor.memory import check_context, check_memory
from kvquant.evals.doctor.model_file import check_gguf, check_rkllm, failed
from kvquant.evals.doctor.policy import TYPES, check_policy

__all__ = [
    "TYPES",
    "Finding",
    "Severity",
    "check_context",
    "check_gguf",
    "check_key_bias",
    "check_machine",
    "check_memory",
    "check_policy",
    "check_rkllm",
    "failed",
    "key_bias_norms",
]
