"""tq3 and tq2: TurboQuant's codes as a cache type: one scale for 64 values that the graph has rotated.

The method of arXiv 2504.19874 (`turboquant.mse` is the paper's) with what a cache type needs: the rotation is
llama.cpp's and no part of the bytes, blocks are 64 values whatever the head, the codebook is rounded to small
integers, and the scale is the one that brings the norm back. docs/turboquant.md says what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvquant.formats.coded import CodedBlock, Part

_SOURCE = "kvquant, docs/formats.md; after arXiv 2504.19874"


@dataclass(frozen=True)
class TQ3(CodedBlock):
    """64 values at 3 bits: fp16 scale, 16 bytes of the codes' lower two bits, 8 bytes of signs."""

    name: str = "tq3"
    source: str = _SOURCE
    block_size = 64
    block_bytes = 2 + 16 + 8
    parts = (Part(64, (7, 22, 40, 66), anchor="peak", tries=(75.0, 85.0), planes=(2, 1)),)


@dataclass(frozen=True)
class TQ2(CodedBlock):
    """64 values at 2 bits: fp16 scale, 16 bytes of codes."""

    name: str = "tq2"
    source: str = _SOURCE
    block_size = 64
    block_bytes = 2 + 16
    parts = (Part(64, (3, 10), anchor="norm", tries=(48.5, 56.0), planes=(2,)),)
