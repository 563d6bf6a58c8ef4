"""A write-up of KV-cache quantization on an RK3588: a table of errors and compression for unit-norm vectors.

Its blocks of 32 share one float32 scale, codes are symmetric (absmax/7 and absmax/127), TurboQuant stores a
float32 length, and compression is against float32. llama.cpp's blocks use the signed maximum over -8 for q4_0
and an fp16 scale, and the cache it replaces is fp16.
"""

from __future__ import annotations

import numpy as np

from kvquant.analysis.published.figure import (
    Figure,
    Reading,
    mean_reading,
    round_trip_errors,
    squared_errors,
    unit_vectors,
)
from kvquant.formats.base import Float32Array
from kvquant.formats.registry import get_format

SOURCE = "RK3588 write-up"
WIDTH = 128
BLOCK = 32
N_VECTORS = 20_000


def figures(seed: int) -> tuple[Figure, ...]:
    """Return the table's eight figures and the two computed from them."""
    x = unit_vectors(N_VECTORS, WIDTH, seed)
    q4_0, tq_4b = get_format("q4_0").bits_per_value(WIDTH), get_format("tq_mse_4b").bits_per_value(WIDTH)
    return (
        _error(x, "q8_0", "2.2e-07", top_code=127),
        _error(x, "q4_0", "7.3e-05", top_code=7),
        _error(x, "tq_mse_4b", "7.3e-05"),
        _error(x, "tq_mse_3b", "2.7e-04"),
        _ratio("q8_0", "3.6x", 8 + 32 / BLOCK),
        _ratio("q4_0", "6.4x", 4 + 32 / BLOCK),
        _ratio("tq_mse_4b", "7.5x", 4 + 32 / WIDTH),
        _ratio("tq_mse_3b", "9.8x", 3 + 32 / WIDTH),
        Figure(
            key="write-up.size.q4_0",
            source=SOURCE,
            claim="a cache of 67.1 MB in fp16 takes this in q4_0",
            published="10.5 MB",
            convention=Reading(67.1 / 6.4, "67.1 MB of fp16 over the ratio against float32"),
            actual=Reading(67.1 * q4_0 / 16, f"67.1 MB · {q4_0} / 16 bits per value"),
        ),
        Figure(
            key="write-up.gain.tq_mse_4b",
            source=SOURCE,
            claim="better compression of TQ_MSE_4b than of Q4_0",
            published="17 %",
            convention=Reading(100 * (7.5 / 6.4 - 1), "7.5 / 6.4, the printed ratios"),
            actual=Reading(
                100 * (q4_0 / tq_4b - 1), f"{q4_0} / {tq_4b} bits per value, fp16 scale and length"
            ),
        ),
    )


def absmax_round_trip(x: Float32Array, top_code: int) -> Float32Array:
    """Return ``x``, (n, width), from blocks of 32: codes up to ±top_code, float32 scale absmax/top_code."""
    blocks = x.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(top_code)
    codes = np.clip(np.rint(blocks / scale), -top_code, top_code)
    return np.asarray(codes * scale, dtype=np.float32).reshape(x.shape)


def _error(x: Float32Array, name: str, published: str, top_code: int | None = None) -> Figure:
    how = f"{len(x)} unit vectors of {WIDTH}"
    if top_code is None:
        convention = mean_reading(
            round_trip_errors(x, get_format(f"{name}-f32")), f"{how}, float32 length", divisor=WIDTH
        )
    else:
        errors = squared_errors(x, absmax_round_trip(x, top_code))
        convention = mean_reading(errors, f"{how}, float32 scale absmax/{top_code}", divisor=WIDTH)
    return Figure(
        key=f"write-up.mse.{name}",
        source=SOURCE,
        claim=f"mean squared error per value of {name.upper()}",
        published=published,
        convention=convention,
        actual=mean_reading(round_trip_errors(x, get_format(name)), f"{how}, {name}", divisor=WIDTH),
    )


def _ratio(name: str, published: str, bits: float) -> Figure:
    own_bits = get_format(name).bits_per_value(WIDTH)
    return Figure(
        key=f"write-up.compression.{name}",
        source=SOURCE,
        claim=f"compression of {name.upper()}",
        published=published,
        convention=Reading(32 / bits, f"float32 over {bits:g} bits per value"),
        actual=Reading(16 / own_bits, f"fp16 over {own_bits:g} bits per value"),
    )
