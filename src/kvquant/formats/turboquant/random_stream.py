"""Random numbers that are part of a format: the same in every version of every library, in any language.

SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014, §4): output i of a
stream is mix(start + (i + 1)·GAMMA). The start of stream s of a seed is mix(mix(seed) + s).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROTATION_STREAM = 0
SKETCH_STREAM = 1

_GAMMA = 0x9E3779B97F4A7C15


def words(seed: int, stream: int, n: int) -> npt.NDArray[np.uint64]:
    """Return the first ``n`` outputs of a stream of ``seed`` (0 <= seed < 2^64)."""
    start = _mix(np.array([seed], np.uint64)) + np.uint64(stream)
    index = np.arange(1, n + 1, dtype=np.uint64)
    return _mix(_mix(start) + index * np.uint64(_GAMMA))


def signs(seed: int, stream: int, n: int) -> npt.NDArray[np.float64]:
    """Return ``n`` values of +1 or -1: the top bit of each word, set for -1."""
    return np.where(words(seed, stream, n) >> np.uint64(63) == 0, 1.0, -1.0)


def gaussians(seed: int, stream: int, n: int) -> npt.NDArray[np.float64]:
    """Return ``n`` standard normal values: the normal quantile of (word >> 11 + 1/2)·2^-53."""
    from scipy.special import ndtri  # here, not on top: listing formats should not pay for scipy

    uniform = ((words(seed, stream, n) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    values: npt.NDArray[np.float64] = ndtri(uniform)
    return values


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
