"""Variations of a policy, written behind it: ``q4_0@no-rotation``, ``q4_0@no-transform``."""

from __future__ import annotations

from dataclasses import dataclass

from kvquant.errors import UsageError

UNROTATED = "no-rotation"
"""The same types without llama.cpp's rotation."""

UNTRANSFORMED = "no-transform"
"""The same types without the transform that the other policies get (--transform)."""

VARIATIONS = (UNROTATED, UNTRANSFORMED)


@dataclass(frozen=True)
class Varied:
    """A policy's text and what was written behind it."""

    policy: str
    rotation: bool
    transform: bool

    def __str__(self) -> str:
        return (
            self.policy
            + ("" if self.rotation else f"@{UNROTATED}")
            + ("" if self.transform else f"@{UNTRANSFORMED}")
        )


def split_variations(text: str) -> Varied:
    """Take the variations off a policy; what begins with @ may be a file's name with another @ in it.

    Raises UsageError, one line, for a variation that there is not.
    """
    policy, taken = text, set()
    while True:
        name, at, word = policy.rpartition("@")
        if not at or not name or word not in VARIATIONS:
            break
        policy = name
        taken.add(word)
    if not policy.startswith("@") and "@" in policy:
        word = policy.rpartition("@")[2]
        raise UsageError(f"--policy {text}: {word!r} is not a variation; known: {', '.join(VARIATIONS)}")
    return Varied(policy, UNROTATED not in taken, UNTRANSFORMED not in taken)
