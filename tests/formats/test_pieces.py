"""Arrays longer than one piece: where pieces meet, in every memory layout, nothing changes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from formats.checks import check_same_bytes, check_same_values
from formats.layouts import GGML
from kvquant.formats.chunks import map_units
from kvquant.formats.ops import Ops
from kvquant.formats.ops_numpy import NumpyOps
from kvquant.formats.ops_torch import TorchOps
from kvquant.formats.registry import get_format

N_ROWS, WIDTH = 5003, 96


@pytest.fixture(scope="module")
def rows() -> npt.NDArray[np.float32]:
    """More values than three pieces hold, rows that no piece ends with; one value in 1,009 is infinite."""
    x = np.random.default_rng(0).standard_normal((N_ROWS, WIDTH)).astype(np.float32)
    x.reshape(-1)[::1009] = np.inf
    return x


def test_the_arrays_are_longer_than_three_pieces() -> None:
    longest = max(NumpyOps.chunk_values, TorchOps(torch.device("cpu")).chunk_values)
    assert 3 * longest < N_ROWS * WIDTH


@pytest.mark.parametrize("name", GGML)
def test_pieces_join(name: str, rows: npt.NDArray[np.float32]) -> None:
    fmt = get_format(name)
    single = [fmt.quantize(rows[start : start + 400]) for start in range(0, N_ROWS, 400)]
    expected = np.concatenate(single)
    values = np.concatenate([fmt.dequantize(packed, WIDTH) for packed in single])
    for layout in (rows, np.asfortranarray(rows), rows.astype(np.float64)):
        check_same_bytes(fmt.quantize(layout), expected, rows, f"{name} {layout.dtype}")
        tensor = torch.from_numpy(np.ascontiguousarray(layout.T)).T
        check_same_bytes(fmt.quantize(tensor).numpy(), expected, rows, f"{name} transposed tensor")
    check_same_bytes(fmt.quantize(torch.from_numpy(rows)).numpy(), expected, rows, f"{name} tensor")
    check_same_values(fmt.dequantize(expected, WIDTH), values, name)
    check_same_values(fmt.dequantize(np.asfortranarray(expected), WIDTH), values, f"{name} transposed")
    check_same_values(fmt.dequantize(torch.from_numpy(expected), WIDTH).numpy(), values, f"{name} tensor")


@pytest.mark.parametrize("name", GGML)
def test_one_long_row(name: str, rows: npt.NDArray[np.float32]) -> None:
    fmt = get_format(name)
    row = rows.reshape(-1)
    packed = fmt.quantize(row)
    assert packed.tobytes() == fmt.quantize(rows).tobytes()
    assert fmt.quantize(np.repeat(row, 2)[::2]).tobytes() == packed.tobytes()
    check_same_values(
        fmt.dequantize(packed, row.size), fmt.dequantize(fmt.quantize(rows), WIDTH).reshape(-1), name
    )


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("name", GGML)
def test_threads_change_nothing(name: str, threads: int, rows: npt.NDArray[np.float32]) -> None:
    fmt = get_format(name)
    expected = fmt.quantize(rows)
    for layout in (rows, np.asfortranarray(rows)):
        check_same_bytes(fmt.quantize(layout, threads=threads), expected, rows, f"{name}, {threads} threads")
    values = fmt.dequantize(expected, WIDTH)
    check_same_values(fmt.dequantize(expected, WIDTH, threads=threads), values, f"{name}, {threads} threads")


def test_threads_work_at_once() -> None:
    both = threading.Barrier(2, timeout=60)

    def wait_for_the_other(_ops: Ops, x: Any, out: Any) -> None:
        both.wait()
        out[...] = x

    x = np.arange(2 * NumpyOps.chunk_values, dtype=np.float32)
    assert (map_units(wait_for_the_other, x, (32, 32), "float32", "float32", threads=2) == x).all()
