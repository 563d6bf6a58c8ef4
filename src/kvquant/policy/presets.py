"""Policies with a name. A preset is nothing but policy text; every type name is one for all layers."""

from __future__ import annotations

import re
from collections.abc import Collection

from kvquant.errors import PolicyError
from kvquant.policy.grammar import parse_policy
from kvquant.policy.messages import unknown
from kvquant.policy.rules import Policy
from kvquant.policy.types import TypeNames

NAMED = {
    "hybrid": "0-10:q8_0,11-31:q4_0",
    "k8v4": "*:k=q8_0/v=q4_0",
}
"""Preset name to policy text, apart from the one preset per type."""

# A word that starts like a kv selector is a policy that lacks its types.
_PRESET_LIKE = re.compile(r"(?!kv[0-9])[a-z][a-z0-9_-]*", re.ASCII | re.IGNORECASE)


def preset_text(name: str, types: Collection[str] | None = None) -> str | None:
    """The policy text behind a preset name (any case), None when there is no such preset."""
    folded = name.lower() if name.isascii() else name
    if folded in NAMED:
        return NAMED[folded]
    return f"*:{folded}" if folded in TypeNames(types) else None


def policy_from_text(text: str, types: Collection[str] | None = None) -> Policy:
    """Read what a user wrote where a policy is asked for: a preset name or the policy language itself.

    Raises PolicyError as ``parse_policy`` does, and with code "preset" for a single word that is no preset.
    """
    word = text.strip(" \t")
    expanded = preset_text(word, types)
    if expanded is None and _PRESET_LIKE.fullmatch(word):
        names = [*NAMED, *TypeNames(types)]
        raise PolicyError(f"policy: {unknown('preset', word, names)}", code="preset")
    return parse_policy(text if expanded is None else expanded, types)
