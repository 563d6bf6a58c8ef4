"""Policy text, its normal form, and which type every layer's K and V cache gets from it."""

from kvquant.policy.grammar import NAMED, preset_text
from kvquant.policy.policy import (
    Policy,
    PolicyWarning,
    ResolvedLayer,
    ResolvedPolicy,
    parse_policy,
    policy_document,
    policy_from_layers,
)
from kvquant.policy.rules import MAX_INDEX, Counting, Rule

__all__ = [
    "MAX_INDEX",
    "NAMED",
    "Counting",
    "Policy",
    "PolicyWarning",
    "ResolvedLayer",
    "ResolvedPolicy",
    "Rule",
    "parse_policy",
    "policy_document",
    "policy_from_layers",
    "preset_text",
]
