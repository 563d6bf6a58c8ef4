"""Policy text, its normal form, and which type every layer's K and V cache gets from it."""

from kvquant.policy.grammar import parse_policy
from kvquant.policy.presets import NAMED, policy_from_text, preset_text
from kvquant.policy.resolve import PolicyWarning, ResolvedLayer, ResolvedPolicy, resolve
from kvquant.policy.rules import MAX_INDEX, Counting, Policy, Rule, policy_from_layers

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
    "policy_from_layers",
    "policy_from_text",
    "preset_text",
    "resolve",
]
