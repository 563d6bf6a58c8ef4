"""Lloyd-Max quantizers for one coordinate of a uniformly random unit vector.

Rotating a vector at random makes its direction uniform on the sphere, so every coordinate has the density
(TurboQuant, arXiv 2504.19874, lemma 1)

    f(x) = Γ(d/2) / (√π Γ((d-1)/2)) · (1 - x²)^((d-3)/2),   -1 <= x <= 1.

For d >= 3 it is log-concave, so exactly one quantizer is stationary: every boundary midway between its
centroids, every centroid the mean of its cell. Cell masses (incomplete beta function) and first moments
(elementary) have closed forms, and Newton's method on the boundaries converges to the last bits of float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kvquant.errors import FormatError

MIN_WIDTH = 3
MAX_WIDTH = 4096
MAX_BITS = 8

_NEWTON_STEPS = 60

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Codebook:
    """The optimal quantizer of ``bits`` bits for one coordinate at ``width``, antisymmetric about zero.

    centroids: float64 (2^bits,), ascending.
    boundaries: float64 (2^bits - 1,), ascending; a value equal to a boundary belongs to the cell above.
    distortion: E‖x - x̃‖² over whole unit vectors: width times the mean squared error of one coordinate.
    """

    width: int
    bits: int
    centroids: Float64Array
    boundaries: Float64Array
    distortion: float


@lru_cache(maxsize=256)
def lloyd_max(width: int, bits: int) -> Codebook:
    """Return the codebook for unit vectors of ``width`` coordinates; computed once per process, in
    milliseconds.

    Raises FormatError when width is outside 3..4096 or bits outside 1..8.
    """
    check_width(width)
    if not 1 <= bits <= MAX_BITS:
        raise FormatError(f"{bits} bits a coordinate is outside 1..{MAX_BITS}; choose a number in that range")
    half = _positive_boundaries(width, 1 << (bits - 1))
    mass, centroid = _cells(width, half)
    centroids = np.concatenate((-centroid[::-1], centroid))
    boundaries = np.concatenate((-half[::-1], [0.0], half))
    centroids.flags.writeable = boundaries.flags.writeable = False
    return Codebook(width, bits, centroids, boundaries, float(1.0 - width * np.sum(mass * centroid**2)))


def check_width(width: int) -> None:
    """Raise FormatError unless vectors of ``width`` coordinates can be rotated and coded."""
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise FormatError(
            f"TurboQuant takes rows of {MIN_WIDTH} to {MAX_WIDTH} values, one head vector each; got {width}"
        )


def _positive_boundaries(width: int, n_cells: int) -> Float64Array:
    """Return the n_cells - 1 boundaries inside (0, 1) of the quantizer of |x|, by Newton's method."""
    if n_cells == 1:
        return np.empty(0)
    from scipy.linalg import solve_banded
    from scipy.special import betaincinv

    # Panter and Dite: optimal boundaries are close to quantiles of f^(1/3), which has the same form with its
    # own exponent.
    t: Float64Array = np.sqrt(betaincinv(0.5, (width - 3) / 6 + 1, np.arange(1, n_cells) / n_cells))
    best = np.inf
    for _ in range(_NEWTON_STEPS):
        mass, centroid = _cells(width, t)
        residual = t - (centroid[:-1] + centroid[1:]) / 2
        error = float(np.max(np.abs(residual) / np.diff(centroid)))
        if not error < best:  # rounding decides now, no longer the iteration
            break
        best, solution = error, t
        density = _half_density(width, t)
        below = density * (t - centroid[:-1]) / mass[:-1]  # how the centroid below a boundary moves with it
        above = density * (centroid[1:] - t) / mass[1:]
        jacobian = np.zeros((3, n_cells - 1))  # the three diagonals
        jacobian[0, 1:] = -density[1:] * (t[1:] - centroid[1:-1]) / mass[1:-1] / 2
        jacobian[1] = 1 - (below + above) / 2
        jacobian[2, :-1] = -density[:-1] * (centroid[1:-1] - t[:-1]) / mass[1:-1] / 2
        t = t - solve_banded((1, 1), jacobian, residual)
    return solution


def _cells(width: int, t: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return mass (of |x|) and mean of the cells that ascending boundaries ``t`` cut [0, 1] into.

    Written with tails and expm1 so that narrow cells and far tails keep their relative precision.
    """
    from scipy.special import betaincc

    k = (width - 1) / 2
    tails = np.concatenate(([1.0], betaincc(0.5, k, t * t), [0.0]))
    mass = -np.diff(tails)
    log_power = np.concatenate(([0.0], k * np.log1p(-t * t)))  # log of (1 - t²)^k
    power = np.exp(log_power)
    drop = np.append(-power[:-1] * np.expm1(np.diff(log_power)), power[-1])
    moment = 2 * np.exp(_log_norm(width)) / (width - 1) * drop
    return mass, moment / mass


def _half_density(width: int, t: Float64Array) -> Float64Array:
    """Return the density of |x| at ``t`` inside (0, 1)."""
    density: Float64Array = 2 * np.exp(_log_norm(width) + (width - 3) / 2 * np.log1p(-t * t))
    return density


def _log_norm(width: int) -> float:
    from math import lgamma, log, pi

    return lgamma(width / 2) - log(pi) / 2 - lgamma((width - 1) / 2)
