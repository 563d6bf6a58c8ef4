"""What each format of coded blocks is, restated from docs/formats.md in plain Python, value by value."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import betaincc

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PartLayout:
    """n values: at which byte of a block they start, magnitudes, whether they are measured by their peak or
    their norm and what that is brought to, bits by plane.
    """

    n: int
    at: int
    magnitudes: tuple[int, ...]
    by_peak: bool
    tries: tuple[float, ...]
    planes: tuple[int, ...]


FIVE_BITS = (3, 9, 14, 20, 26, 32, 38, 44, 51, 58, 66, 75, 84, 96, 108, 127)
FOUR_BITS = (4, 12, 20, 29, 38, 49, 62, 80)
THREE_BITS = (7, 22, 40, 66)
TWO_BITS = (3, 10)

LAYOUTS = {
    "tq3": (PartLayout(64, 0, THREE_BITS, True, (75, 85), (2, 1)),),
    "tq2": (PartLayout(64, 0, TWO_BITS, False, (48.5, 56), (2,)),),
    "k5x3": (
        PartLayout(32, 0, FIVE_BITS, True, (128, 108), (4, 1)),
        PartLayout(32, 22, THREE_BITS, True, (69, 81), (2, 1)),
    ),
    "k4x2": (
        PartLayout(32, 0, FOUR_BITS, True, (78, 86), (4,)),
        PartLayout(32, 18, TWO_BITS, False, (40, 31), (2,)),
    ),
}
BLOCK_BYTES = {"tq3": 26, "tq2": 18, "k5x3": 36, "k4x2": 28}


def float32(x: float) -> float:
    """Return ``x`` rounded to float32, an infinity past its range."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])
    except OverflowError:
        return math.copysign(math.inf, x)


def folded(squares: list[float]) -> float:
    """Return the sum, the second half added onto the first until one number is left."""
    while len(squares) > 1:
        half = len(squares) // 2
        squares = [squares[i] + squares[i + half] for i in range(half)]
    return squares[0]


def encoded_block(name: str, x: npt.NDArray[np.float32]) -> bytes:
    """Return the bytes of one block of finite values, float32 (block,)."""
    out, place = b"", 0
    for part in LAYOUTS[name]:
        out += _encoded_part(part, [float(value) for value in x[place : place + part.n]])
        place += part.n
    return out


def _encoded_part(part: PartLayout, values: list[float]) -> bytes:
    norm = math.sqrt(folded([value * value for value in values]))
    anchor = max(abs(value) for value in values) if part.by_peak else norm
    best, best_closeness = None, 0.0
    for steps in part.tries:
        places = _nearest(part.magnitudes, values, steps, anchor)
        levels = [part.magnitudes[place] for place in places]
        product = folded([abs(value) * level for value, level in zip(values, levels, strict=True)])
        closeness = product * product / sum(level**2 for level in levels)
        if best is None or closeness > best_closeness:
            best, best_closeness = places, closeness
    assert best is not None
    squares = sum(part.magnitudes[place] ** 2 for place in best)
    codes = [
        place + (len(part.magnitudes) if math.copysign(1.0, value) < 0 else 0)
        for place, value in zip(best, values, strict=True)
    ]
    scale = np.float16(np.float32(min(norm / math.sqrt(squares), 65504.0)))
    planes, taken = b"", 0
    for bits in part.planes:
        m = part.n * bits // 8
        plane = [0] * m
        for i, code in enumerate(codes):
            plane[i % m] |= (code >> taken & ((1 << bits) - 1)) << bits * (i // m)
        planes, taken = planes + bytes(plane), taken + bits
    return scale.tobytes() + planes


def _nearest(magnitudes: tuple[int, ...], values: list[float], steps: float, anchor: float) -> list[int]:
    """Return the number of the magnitude nearest to each value, the upper of two; anchor is at steps."""
    inverse = float32(steps / anchor) if anchor else 0.0
    if math.isinf(inverse):
        inverse = 0.0
    midpoints = [(a + b) / 2 for a, b in pairwise(magnitudes)]
    return [sum(float32(abs(value) * inverse) >= middle for middle in midpoints) for value in values]


def decoded_block(name: str, packed: bytes) -> list[float]:
    """Return the values of one block of bytes."""
    values = []
    for part in LAYOUTS[name]:
        scale = float(np.frombuffer(packed[part.at : part.at + 2], "<f2")[0])
        codes, start, taken = [0] * part.n, part.at + 2, 0
        for bits in part.planes:
            m = part.n * bits // 8
            for i in range(part.n):
                field = packed[start + i % m] >> bits * (i // m) & ((1 << bits) - 1)
                codes[i] |= field << taken
            start, taken = start + m, taken + bits
        levels = [*part.magnitudes, *(-magnitude for magnitude in part.magnitudes)]
        values += [scale * levels[code] for code in codes]
    return values


def exact_distortion(n: int, magnitudes: tuple[int, ...], reach: float) -> float:
    """Return E‖x − levels/reach‖² for x uniform on the unit sphere of n values, levels nearest to reach·x.

    From closed-form integrals of the density of one coordinate.
    """
    mass, moment = _cells(n, magnitudes, reach)
    levels = np.array(magnitudes) / reach
    return float(1 - 2 * n * np.sum(moment * levels) + n * np.sum(mass * levels**2))


def corrected_distortion(n: int, magnitudes: tuple[int, ...], reach: float) -> float:
    """Return E‖x − levels/‖levels‖‖² = 2 − 2 E[A/√N] for such x, A = ⟨x, levels⟩, N = ‖levels‖².

    By expansion to second order about the means of A and N; their moments are integrals over one and two
    coordinates of the sphere. What is left out is of the order of 1/n².
    """
    mass, moment = _cells(n, magnitudes, reach)
    levels = np.array(magnitudes, np.float64)
    mean_a, mean_n = n * float(np.sum(moment * levels)), n * float(np.sum(mass * levels**2))
    # |x1| and |x2| by the midpoint rule; the density of a pair is proportional to (1 − x1² − x2²)^((n−4)/2).
    t = (np.arange(2000) + 0.5) * min(1.0, 6.5 / math.sqrt(n)) / 2000
    midpoints = (levels[1:] + levels[:-1]) / 2 / reach
    level = levels[np.searchsorted(midpoints, t, side="right")]
    pair = np.clip(1 - t[:, None] ** 2 - t**2, 0, None) ** ((n - 4) / 2)
    pair /= pair.sum()
    one = pair.sum(axis=1)
    a, b = t * level, level**2
    variance = n * float(one @ b**2) + n * (n - 1) * float(b @ pair @ b) - (n * float(one @ b)) ** 2
    both = n * float(one @ (a * b)) + n * (n - 1) * float(a @ pair @ b)
    covariance = both - n * float(one @ a) * n * float(one @ b)
    ratio = mean_a - covariance / (2 * mean_n) + 3 / 8 * mean_a * variance / mean_n**2
    return 2 - 2 * ratio / math.sqrt(mean_n)


def _cells(n: int, magnitudes: tuple[int, ...], reach: float) -> tuple[Float64Array, Float64Array]:
    """Return the mass of each magnitude's cell of |x|, and the integral of |x| over it, x one coordinate."""
    levels = np.array(magnitudes, np.float64)
    edges = (levels[1:] + levels[:-1]) / 2 / reach
    k = (n - 1) / 2
    mass = -np.diff(np.concatenate(([1.0], betaincc(0.5, k, edges**2), [0.0])))
    # The density of |x| is c (1 − x²)^(k−1), so its first moment is −c/(2k) (1 − x²)^k.
    c = 2 * math.exp(math.lgamma(n / 2) - math.lgamma(k)) / math.sqrt(math.pi)
    power = np.concatenate(([1.0], (1 - edges**2) ** k, [0.0]))
    return mass, c / (2 * k) * -np.diff(power)
