"""The best transform in closed form, from moments (docs/transform.md has the derivation).

With P = E[(k−c)(k−c)ᵀ], Q = E[qqᵀ] over the query heads of a group, each key and query as likely as it
weighs in the moments, and quantization error spread evenly over the dimensions of a head (which llama.cpp's
Hadamard step after M sees to), the expected squared error of a logit is proportional to

    tr(M P Mᵀ) · tr(M⁻ᵀ Q M⁻¹) / D

Over all invertible M its least value is (Σ √λ)² / D, λ the eigenvalues of P^½ Q P^½ = U Λ Uᵀ, reached by
M = Λ^¼ Uᵀ P^-½ ("balanced"). Over diagonal M it is (Σ √(Pᵢᵢ Qᵢᵢ))² / D, reached by sᵢ = (Qᵢᵢ / Pᵢᵢ)^¼.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kvquant.errors import TransformError
from kvquant.transform.moments import Float64Array, HeadMoments, LayerMoments
from kvquant.transform.transform import KINDS, MAX_CONDITION, Kind, LayerTransform


@dataclass(frozen=True)
class FitOptions:
    """How a fit guards itself against what few tokens cannot tell.

    floor: added to P and Q along the diagonal, as a share of their mean channel energy. A channel without
    energy (Gemma has some) would otherwise get an infinite scale. shrink: how far P and Q are drawn towards
    their diagonals, 0 not at all to 1 wholly; only the balanced kind sees it. centred: whether c is the mean
    of k, or 0.
    """

    floor: float = 1e-4
    shrink: float = 0.0
    centred: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.floor <= 1 and 0 <= self.shrink <= 1):
            raise TransformError(
                f"fit: a floor of {self.floor} and a shrinkage of {self.shrink}; both must be from 0 to 1"
            )


def predicted_error(matrix: Float64Array, p: Float64Array, q: Float64Array) -> float:
    """Return tr(M P Mᵀ) · tr(M⁻ᵀ Q M⁻¹) / D for M (head_dim, head_dim) or its diagonal (head_dim,)."""
    if matrix.ndim == 1:
        keys, queries = np.sum(matrix**2 * np.diag(p)), np.sum(np.diag(q) / matrix**2)
    else:
        inverse = np.linalg.inv(matrix)
        keys, queries = np.trace(matrix @ p @ matrix.T), np.trace(inverse.T @ q @ inverse)
    return float(keys * queries / len(p))


def predicted_errors(
    head: HeadMoments, centre: Float64Array, matrix: Float64Array, floor: float
) -> tuple[float, float]:
    """Return the predicted errors of one head as it is, and with its transform; both on floored moments."""
    plain, q = head.key_energy(np.zeros(head.width)), _floored(head.query_energy, floor)
    before = predicted_error(np.ones(head.width), _floored(plain, floor), q)
    return before, predicted_error(matrix, _floored(head.key_energy(centre), floor, at_least=plain), q)


def fit_head(
    head: HeadMoments, kind: Kind, options: FitOptions = FitOptions()
) -> tuple[Float64Array, Float64Array]:
    """Return (centre, M) of one KV head in float64: c (head_dim,), M its diagonal (head_dim,) or whole.

    M is scaled so that keys keep their mean energy, and bounded to half of `MAX_CONDITION`, so that rounding
    to float16 stays within it. Raises TransformError for an unknown kind.
    """
    if kind not in KINDS:
        raise TransformError(f"fit: unknown kind {kind!r}; known: {', '.join(KINDS)}")
    centre = head.key_mean if options.centred else np.zeros(head.width)
    p = _floored(head.key_energy(centre), options.floor, at_least=head.key_energy(np.zeros(head.width)))
    q = _floored(head.query_energy, options.floor)
    if kind == "centre":
        return centre, np.ones(head.width)
    if kind == "diagonal":
        matrix = _bounded_diagonal((np.diag(q) / np.diag(p)) ** 0.25)
        return centre, matrix * math.sqrt(np.trace(p) / np.sum(matrix**2 * np.diag(p)))
    matrix = _balancing(_shrunk(p, options.shrink), _shrunk(q, options.shrink))
    return centre, matrix * math.sqrt(np.trace(p) / np.trace(matrix @ p @ matrix.T))


def fit_layer(moments: LayerMoments, kind: Kind, options: FitOptions = FitOptions()) -> LayerTransform:
    """Fit every KV head of a layer. Centre and M are rounded to float16, the precision of the sidecar."""
    fitted = [fit_head(head, kind, options) for head in moments.heads]
    centre = _half(np.stack([centre for centre, _ in fitted]))
    forward = None if kind == "centre" else _half(np.stack([matrix for _, matrix in fitted]))
    errors = [
        predicted_errors(head, c, m, options.floor)
        for head, (c, m) in zip(moments.heads, fitted, strict=True)
    ]
    before, after = (math.fsum(column) for column in zip(*errors, strict=True))
    gain = 10 * math.log10(before / after) if before > 0 and after > 0 else 0.0
    return LayerTransform(moments.layer, centre, forward, gain_db=gain)


def _floored(square: Float64Array, floor: float, at_least: Float64Array | None = None) -> Float64Array:
    """Add ``floor`` times the mean channel energy along the diagonal.

    at_least: energies that count for the mean as well. Keys that all equal their centre would leave nothing
    to measure a floor by; their energy before centring is what float16 and float32 round against.
    """
    reference = max(np.trace(square), 0.0) / len(square)
    if at_least is not None:
        reference = max(reference, 1e-6 * np.trace(at_least) / len(square))
    # All of K or Q may be zero: any positive floor then gives M = I.
    return np.asarray(square + np.eye(len(square)) * (floor * reference or 1.0))


def _shrunk(square: Float64Array, share: float) -> Float64Array:
    return np.asarray((1 - share) * square + share * np.diag(np.diag(square)))


def _balancing(p: Float64Array, q: Float64Array) -> Float64Array:
    """Return Λ^¼ Uᵀ P^-½, its singular values bounded; P and Q positive definite."""
    values, vectors = np.linalg.eigh(p)
    values = np.maximum(values, values.max() * 1e-12)
    half, inverse_half = np.sqrt(values), 1 / np.sqrt(values)
    root = vectors * half @ vectors.T
    eigenvalues, u = np.linalg.eigh(root @ q @ root)
    eigenvalues = np.maximum(eigenvalues, eigenvalues.max() * 1e-24)
    matrix = eigenvalues[:, None] ** 0.25 * (u.T @ (vectors * inverse_half @ vectors.T))
    left, singular, right = np.linalg.svd(matrix)
    return np.asarray(left * _bounded_diagonal(singular) @ right)


def _bounded_diagonal(values: Float64Array) -> Float64Array:
    """Clip positive values, so that their ratio is at most half of `MAX_CONDITION`, about their middle."""
    low, high = values.min(), values.max()
    if high / low <= MAX_CONDITION / 2:
        return values
    middle, reach = math.exp(float(np.mean(np.log(values)))), math.sqrt(MAX_CONDITION / 2)
    return np.clip(values, middle / reach, middle * reach)


def _half(array: Float64Array) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Round to float16; values beyond its range, a bias of more than 65504, keep float16's largest."""
    limit = float(np.finfo(np.float16).max)
    return np.asarray(np.clip(array, -limit, limit).astype(np.float16), dtype=np.float32)
