"""Published numbers on KV-cache quantization, recomputed: under their own convention and against fp16."""

from __future__ import annotations

from kvquant.analysis.published import buffers, turboquant, write_up
from kvquant.analysis.published.figure import Figure, Reading, Verdict

__all__ = ["Figure", "Reading", "Verdict", "recompute"]


def recompute(seed: int = 0) -> tuple[Figure, ...]:
    """Return every figure, measured on vectors drawn with ``seed``; about a second of work."""
    return (*write_up.figures(seed), *turboquant.figures(seed), *buffers.figures())
