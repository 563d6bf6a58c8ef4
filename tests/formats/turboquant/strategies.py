"""Vectors that matter to a format of lengths and directions, edge cases by construction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

WIDTHS = (3, 7, 8, 64, 72, 80, 96, 101, 127, 128)

_TINY = float(np.finfo(np.float32).smallest_subnormal)
_NORMAL = float(np.finfo(np.float32).tiny)
_HUGE = float(np.finfo(np.float32).max)
_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
_EDGES = (0.0, -0.0, _TINY, -_TINY, _NORMAL, _HUGE, -_HUGE, 1.0, _BELOW_ONE)
_KINDS = ("dense", "sparse", "constant", "one-hot", "edges")


@st.composite
def finite_rows(draw: st.DrawFn, width: int) -> npt.NDArray[np.float32]:
    """Draw 1 to 5 rows of finite float32: dense, sparse, constant, one-hot, or made of edge values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = []
    for kind in draw(st.lists(st.sampled_from(_KINDS), min_size=1, max_size=5)):
        scale = np.float32(2.0 ** draw(st.integers(-140, 120)))
        row = rng.standard_normal(width).astype(np.float32)
        if kind == "sparse":
            row[rng.random(width) < 0.9] = 0
        elif kind == "constant":
            row[:] = row[0]
        elif kind == "one-hot":
            row[1:] = 0
            row = np.roll(row, int(rng.integers(width)))
        elif kind == "edges":
            row, scale = rng.choice(np.array(_EDGES, np.float32), width), np.float32(1)
        rows.append(row * scale)
    return np.stack(rows)


@st.composite
def ordinary_rows(draw: st.DrawFn, width: int) -> npt.NDArray[np.float32]:
    """Draw 1 to 5 rows of lengths between 1e-2 and 1e3, which fp16 holds with full precision."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_rows = draw(st.integers(1, 5))
    gains = np.exp(rng.normal(0, draw(st.sampled_from([0, 1, 3])), (1, width)))
    x = rng.standard_normal((n_rows, width)) * gains
    lengths = 10.0 ** rng.uniform(-2, 3, (n_rows, 1))
    return (x / np.linalg.norm(x, axis=1, keepdims=True) * lengths).astype(np.float32)


def format_names(kind: str = "any") -> st.SearchStrategy[str]:
    """Draw the name of a TurboQuant format, suffixes included; kind: "mse", "prod" or "any"."""
    mse = st.from_regex(r"tq_mse_[1-8]b(-nc)?(-qr)?(-f32)?(-s[1-9][0-9]?)?", fullmatch=True)
    prod = st.from_regex(r"tq_prod_[2-8]b(-qr)?(-f32)?(-s[1-9][0-9]?)?", fullmatch=True)
    return {"mse": mse, "prod": prod}.get(kind, st.one_of(mse, prod))
