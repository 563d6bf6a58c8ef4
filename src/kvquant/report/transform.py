"""A K transform in words, the same wherever one was used."""

from __future__ import annotations

from kvquant.results.transform import TransformUsed
from kvquant.units import format_n_bytes

SHORT_DIGEST = 16
"""Hexadecimal digits, as records name a transform by them."""


def transform_line(used: TransformUsed) -> str:
    """Return what is said of a transform: its file, layers, bytes, depth and the beginning of its digest."""
    depth = "unknown depth" if used.n_ctx is None else f"calibrated to {used.n_ctx} tokens"
    return (
        f"{used.name}: {used.n_layer} layers, {format_n_bytes(used.n_bytes)}, {depth}, digest "
        f"{used.digest[:SHORT_DIGEST]}"
    )
