"""Which K transform a result was made with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransformUsed:
    """A file of `kvquant calibrate` (docs/transform.md).

    digest: SHA-256 of what changes numbers. n_bytes: of the file. n_ctx: deepest position it was fitted and
    measured at, null where the file does not say. n_layer: layers it changes.
    """

    name: str
    digest: str
    n_bytes: int
    n_ctx: int | None
    n_layer: int
