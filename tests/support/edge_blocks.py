"""Blocks of 32 values where quantizers go wrong: ties, both zeros, subnormals, overflow, one ulp either side.

Every group is built from a seed, the same on every machine. Golden data and the live comparison both use
them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Blocks = npt.NDArray[np.float32]

SIZE = 32
FLT_MAX = np.finfo(np.float32).max
SUBNORMAL = np.finfo(np.float32).smallest_subnormal

# Per format: the value that makes the scale exactly 1 (the block's peak or range), and where codes change
# over.
_GRIDS = {
    "q8_0": (127.0, np.arange(-126.5, 127, 1)),
    "q4_0": (-8.0, np.arange(-7.5, 8, 1)),
    "q5_0": (-16.0, np.arange(-15.5, 16, 1)),
    "q4_1": (15.0, np.arange(0.5, 15, 1)),
    "q5_1": (31.0, np.arange(0.5, 31, 1)),
    "iq4_nl": (
        -127.0,
        np.array([-115.5, -93.5, -74, -57, -42, -28.5, -16, -4.5, 7, 19, 31.5, 45.5, 61, 79, 101]),
    ),
}


def edge_blocks(n_blocks: int = 32, seed: int = 0) -> dict[str, Blocks]:
    """Return named groups of blocks, each float32 (n_blocks, 32), all finite. n_blocks: 8 or more."""
    random = np.random.default_rng(seed)

    def gaussian(n: int = n_blocks) -> npt.NDArray[np.float64]:
        return random.standard_normal((n, SIZE))

    def powers(low: int, high: int) -> npt.NDArray[np.float64]:
        """One power of two per block, so that scales take many exponents."""
        return np.exp2(random.integers(low, high, (n_blocks, 1)))

    outliers = gaussian()
    outliers[np.arange(n_blocks), random.integers(0, SIZE, n_blocks)] *= 50
    groups: dict[str, npt.NDArray[np.floating]] = {
        "normal": gaussian(),
        "outlier": outliers,
        "shifted": gaussian() + 10 * gaussian()[:, :1],
        "one_sided": np.abs(gaussian()) * np.sign(gaussian()[:, :1]),
        "exponents": gaussian() * powers(-30, 30),
        "tiny": gaussian() * powers(-60, -14),
        "subnormal": _subnormal(random, n_blocks),
        "huge": _huge(random, n_blocks),
        "signed_zero": _zeros(random, n_blocks),
        "equal_peaks": _equal_peaks(random, n_blocks),
        "scale_tie": _scale_ties(random, n_blocks),
        "bit_patterns": _bit_patterns(random, n_blocks),
        "half_boundary": _half_boundaries(random, n_blocks),
    }
    for name, (peak, ties) in _GRIDS.items():
        on_tie = random.choice(ties, (n_blocks, SIZE))
        on_tie[:, 0] = peak
        if peak > 0 and name != "q8_0":
            on_tie[:, 1] = 0.0  # the formats with a minimum measure from it
        scaled = (on_tie * powers(-20, 20)).astype(np.float32)
        groups[f"tie_{name}"] = scaled
        toward = np.where(gaussian() > 0, np.float32(np.inf), np.float32(-np.inf))
        beside = np.nextafter(scaled, toward.astype(np.float32))
        beside[:, :2] = scaled[:, :2]
        groups[f"nextafter_{name}"] = beside
    return {name: np.ascontiguousarray(blocks, np.float32) for name, blocks in groups.items()}


def _subnormal(random: np.random.Generator, n_blocks: int) -> Blocks:
    """Multiples of the smallest subnormal: from where 1/d overflows or d vanishes up to normal numbers."""
    top = np.exp2(random.integers(1, 26, (n_blocks, 1)))
    steps = np.round(random.uniform(-1, 1, (n_blocks, SIZE)) * top)
    return (steps * np.float64(SUBNORMAL)).astype(np.float32)


def _huge(random: np.random.Generator, n_blocks: int) -> Blocks:
    """From where an fp16 scale overflows to the largest float32, where x*x and max - min overflow too."""
    top = np.exp2(random.integers(15, 127, (n_blocks, 1)))
    x = random.uniform(-1.9, 1.9, (n_blocks, SIZE)) * top
    x[0, :] = FLT_MAX
    x[1, ::2] = -FLT_MAX
    x[2, :] = np.resize([FLT_MAX, -FLT_MAX, 1.0, 0.0], SIZE)
    x[3, :] = np.resize([65504 * 127, 65520 * 127, -65504 * 8, 65519], SIZE)
    return x.astype(np.float32)


def _zeros(random: np.random.Generator, n_blocks: int) -> Blocks:
    """Zeros of both signs alone, and among values of one sign, where the first one signs the minimum."""
    x = np.where(random.random((n_blocks, SIZE)) < 0.5, np.float32(0.0), np.float32(-0.0))
    x[0], x[1] = 0.0, -0.0
    some = random.random((n_blocks, SIZE)) < 0.3
    some[: n_blocks // 4] = False
    sign = np.where(random.random((n_blocks, 1)) < 0.5, 1.0, -1.0)
    return np.where(some, np.abs(random.standard_normal((n_blocks, SIZE))) * sign, x).astype(np.float32)


def _equal_peaks(random: np.random.Generator, n_blocks: int) -> Blocks:
    """The largest magnitude several times with both signs: the first one decides."""
    x = random.standard_normal((n_blocks, SIZE))
    peak = np.abs(x).max(axis=1, keepdims=True)
    at = random.random((n_blocks, SIZE)) < 0.2
    return np.where(at, peak * np.sign(x), x).astype(np.float32)


def _scale_ties(random: np.random.Generator, n_blocks: int) -> Blocks:
    """Blocks whose scale lies in the middle between two fp16 numbers or one ulp beside it."""
    scale = _half_midpoints(random, n_blocks)[:, None]
    peak = random.choice([127.0, -8.0, 8.0, -16.0, 16.0, 15.0, 31.0], (n_blocks, 1))
    x = random.uniform(0, 0.99, (n_blocks, SIZE))
    x[:, 0], x[:, 1] = 1.0, 0.0
    factor: Blocks = (scale * peak).astype(np.float32)
    return x.astype(np.float32) * factor


def _half_midpoints(random: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    bits = random.integers(0, 0x7BFF, n).astype(np.uint16)
    low, high = bits.view(np.float16), (bits + np.uint16(1)).view(np.float16)
    middle = ((low.astype(np.float64) + high.astype(np.float64)) / 2).astype(np.float32)
    nudged = (np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(np.inf)))
    return np.choose(random.integers(0, 3, n), nudged).astype(np.float64)


def _half_boundaries(random: np.random.Generator, n_blocks: int) -> Blocks:
    """Where fp16 and bf16 round: midpoints and neighbours, the ends of the range, the smallest numbers."""
    x = _half_midpoints(random, n_blocks * SIZE).astype(np.float32)
    special = [65504.0, 65519.996, 65520.0, 65536.0, 2.0**-14, 2.0**-24, 2.0**-25, 2.0**-26, 6.1e-5, 3.0e-8]
    specials = np.array(special, np.float32)
    x[: 3 * len(special)] = [
        *specials,
        *np.nextafter(specials, np.float32(0)),
        *np.nextafter(specials, np.float32(1e9)),
    ]
    # bf16: the lower half exactly, or one off, 0x8000, with even and odd upper halves.
    upper = random.integers(0, 0x7F7F, n_blocks * SIZE // 2).astype(np.uint32) << np.uint32(16)
    x[n_blocks * SIZE // 2 :] = (
        upper | random.choice([0x7FFF, 0x8000, 0x8001], upper.size).astype(np.uint32)
    ).view(np.float32)
    return (x * np.where(random.random(x.size) < 0.5, np.float32(-1), np.float32(1))).reshape(n_blocks, SIZE)


def _bit_patterns(random: np.random.Generator, n_blocks: int) -> Blocks:
    """Any finite float32 with equal chance of every bit pattern."""
    bits = random.integers(0, 1 << 32, (n_blocks, SIZE), dtype=np.uint64).astype(np.uint32)
    not_finite = (bits >> np.uint32(23)) & np.uint32(0xFF) == 0xFF
    return np.where(not_finite, bits ^ np.uint32(0x40000000), bits).astype(np.uint32).view(np.float32)


def side_by_side(groups: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return the blocks of every group beside those of the same group in reverse, float32 (n, 2 SIZE)."""
    return np.concatenate([np.concatenate((x, x[::-1]), axis=1) for x in groups.values()])
