"""Hypothesis strategies for rows of values, edge values included by construction rather than by luck."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_blocks import FLT_MAX, SUBNORMAL, edge_blocks

Blocks = npt.NDArray[np.float32]

_NEAR_HALF = [np.nextafter(np.float32(0.5), np.float32(0)), 0.5, np.nextafter(np.float32(0.5), np.float32(1))]
EDGE_VALUES = [
    *(0.0, -0.0, 1.0, -1.0, 127.0, -8.0, 8.0, -16.0, 16.0, 15.0, 31.0),
    *(float(value) for value in _NEAR_HALF),
    *(k + 0.5 for k in (1, 2, 7, 14, 62, 126)),
    *(float(SUBNORMAL), float(1000 * SUBNORMAL), 2.0**-126, 2.0**-24, 2.0**-25, 1e-15),
    *(65504.0, 65519.996, 65520.0, float(FLT_MAX)),
]


def _float32(values: list[float]) -> list[float]:
    return [float(np.float32(value)) for value in values]


@cache
def _edge_groups(seed: int) -> dict[str, Blocks]:
    return edge_blocks(16, seed)


@st.composite
def blocks(draw: st.DrawFn, max_blocks: int = 4) -> Blocks:
    """Finite float32 (n, 32): any floats, edge values of either sign, or blocks of `edge_blocks`."""
    n = draw(st.integers(1, max_blocks))
    if draw(st.booleans()):
        groups = _edge_groups(draw(st.integers(0, 31)))
        group = groups[draw(st.sampled_from(sorted(groups)))]
        return group[draw(st.lists(st.integers(0, len(group) - 1), min_size=n, max_size=n))]
    edges = st.sampled_from(_float32([*EDGE_VALUES, *(-value for value in EDGE_VALUES)]))
    anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
    moderate = st.floats(-8, 8, width=32)
    elements = draw(st.sampled_from([edges, anything, moderate, st.one_of(edges, moderate)]))
    return draw(hnp.arrays(np.float32, (n, 32), elements=elements, fill=st.sampled_from([0.0, 1.0, -0.5])))


def plain_blocks(max_blocks: int = 8) -> st.SearchStrategy[Blocks]:
    """float32 (n, 32) whose values are zero or between 2^-8 and 2^8 in magnitude: room for powers of two."""
    magnitude = st.floats(2.0**-8, 2.0**8, width=32)
    elements = st.one_of(magnitude, magnitude.map(lambda value: -value), st.just(0.0))
    return st.integers(1, max_blocks).flatmap(
        lambda n: hnp.arrays(np.float32, (n, 32), elements=elements, fill=st.just(1.0))
    )


def broken_blocks() -> st.SearchStrategy[tuple[Blocks, int, int, float]]:
    """Blocks, and where to put which value that is not finite: (blocks, block, place, value)."""
    return blocks().flatmap(
        lambda x: st.tuples(
            st.just(x),
            st.integers(0, len(x) - 1),
            st.integers(0, 31),
            st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]),
        )
    )


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """Leading shapes, empty axes included."""
    return hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


def populations(n_blocks: int = 512) -> st.SearchStrategy[Blocks]:
    """Random blocks of one distribution, float32 (n_blocks, 32), for statements about averages."""

    def draw_population(kind: str, seed: int) -> Blocks:
        random = np.random.default_rng(seed)
        sample = {
            "normal": random.standard_normal,
            "laplace": lambda size: random.laplace(size=size),
            "uniform": lambda size: random.uniform(-1, 1, size),
            "student": lambda size: random.standard_t(4, size),
        }[kind]
        return sample((n_blocks, 32)).astype(np.float32)

    return st.builds(
        draw_population, st.sampled_from(["normal", "laplace", "uniform", "student"]), st.integers(0, 2**32)
    )
