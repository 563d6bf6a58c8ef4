"""k5x3 and k4x2: keys whose dimensions a transform has ordered, the stronger half with more bits.

A block is two halves of 32 values, rotated by a Hadamard matrix each, with scales and widths of their own.
docs/transform.md says where the order comes from and what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvquant.formats.coded import CodedBlock, Part

HALF = 32
"""Values of half a block."""

_SOURCE = "kvquant, docs/formats.md"


@dataclass(frozen=True)
class K5X3(CodedBlock):
    """32 values at 5 bits, 32 at 3; each half fp16 scale, the magnitudes' plane, 4 bytes of signs."""

    name: str = "k5x3"
    source: str = _SOURCE
    block_size = 64
    block_bytes = (2 + 16 + 4) + (2 + 8 + 4)
    rotation_block = HALF
    parts = (
        Part(
            HALF,
            (3, 9, 14, 20, 26, 32, 38, 44, 51, 58, 66, 75, 84, 96, 108, 127),
            anchor="peak",
            tries=(128.0, 108.0),
            planes=(4, 1),
        ),
        Part(HALF, (7, 22, 40, 66), anchor="peak", tries=(69.0, 81.0), planes=(2, 1)),
    )


@dataclass(frozen=True)
class K4X2(CodedBlock):
    """32 values at 4 bits, 32 at 2; each half fp16 scale, then its codes."""

    name: str = "k4x2"
    source: str = _SOURCE
    block_size = 64
    block_bytes = (2 + 16) + (2 + 8)
    rotation_block = HALF
    parts = (
        Part(HALF, (4, 12, 20, 29, 38, 49, 62, 80), anchor="peak", tries=(78.0, 86.0), planes=(4,)),
        Part(HALF, (3, 10), anchor="norm", tries=(40.0, 31.0), planes=(2,)),
    )
