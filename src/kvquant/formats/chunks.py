"""Running a kernel over an array of any size, strides and leading shape, in pieces that stay in cache.

The pieces bound the temporary memory: a kernel never sees more than `ops.chunk_values` values at a time, so
that its work buffers are about a MiB a thread whatever the input. Pieces are independent, so that threads may
share them out; NumPy lets go of the interpreter's lock while it computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kvquant.errors import FormatError
from kvquant.formats.ops import Ops
from kvquant.formats.tensors import is_tensor

Kernel = Callable[[Ops, Any, Any], None]


def map_units(
    kernel: Kernel,
    x: Any,
    unit: tuple[int, int],
    dtype: str,
    out_dtype: str,
    chunk_values: int = 0,
    threads: int = 1,
) -> Any:
    """Return ``kernel`` applied to every unit of ``x``'s last axis, units in their order.

    x: (..., k * n_in) of any strides. unit: (n_in, n_out), the lengths of one unit before and after.
    dtype: what the kernel reads; pieces of another dtype are converted, rounding to nearest.
    chunk_values: for a kernel that works across units and wants longer runs than the ops' own measure.
    threads: how many work on an array's pieces; a tensor takes Torch's own and 1 here.
    The result is contiguous, of shape (..., k * n_out) and dtype ``out_dtype``. Raises FormatError for a
    number of threads that cannot be.
    """
    if is_tensor(x):
        if threads != 1:
            raise FormatError(f"threads is {threads}, but Torch has its own; use torch.set_num_threads")
        return _map_tensor(kernel, x, unit, dtype, out_dtype, chunk_values)
    if threads < 1:
        raise FormatError(f"threads is {threads}; give 1 or more")
    return _map_array(kernel, x, unit, dtype, out_dtype, chunk_values, threads)


def _pieces(n_units: int, unit: tuple[int, int], chunk_values: int) -> Iterator[slice]:
    step = max(1, chunk_values // max(unit))
    for start in range(0, n_units, step):
        yield slice(start, min(start + step, n_units))


def _map_array(
    kernel: Kernel, x: Any, unit: tuple[int, int], dtype: str, out_dtype: str, chunk_values: int, threads: int
) -> Any:
    from kvquant.formats.ops_numpy import NumpyOps

    n_in, n_out = unit
    per_row = x.shape[-1] // n_in
    units = x.reshape(*x.shape[:-1], per_row, n_in)  # splitting an axis never copies
    out = np.empty((*x.shape[:-1], per_row * n_out), out_dtype)
    flat = out.reshape(-1, n_out)
    n_units = math.prod(units.shape[:-1])
    pieces = list(_pieces(n_units, unit, max(NumpyOps.chunk_values, chunk_values)))

    def run(share: Iterable[slice]) -> None:
        ops = NumpyOps()
        # Overflow to infinity, 0 * inf and the like are part of what the formats define, not accidents.
        with np.errstate(all="ignore"):
            for piece in share:
                if units.flags.c_contiguous:
                    chunk = units.reshape(-1, n_in)[piece]
                else:
                    chunk = units[np.unravel_index(np.arange(piece.start, piece.stop), units.shape[:-1])]
                kernel(ops, np.require(chunk, dtype, ("C", "A")), flat[piece])

    if threads == 1 or len(pieces) < 2:
        run(pieces)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, [pieces[first::threads] for first in range(threads)]))
    return out


def _map_tensor(
    kernel: Kernel, x: Any, unit: tuple[int, int], dtype: str, out_dtype: str, chunk_values: int
) -> Any:
    import torch

    from kvquant.formats.ops_torch import TorchOps

    n_in, n_out = unit
    per_row = x.shape[-1] // n_in
    units = x.unflatten(-1, (per_row, n_in))
    out = torch.empty((*x.shape[:-1], per_row * n_out), dtype=getattr(torch, out_dtype), device=x.device)
    flat = out.view(-1, n_out)
    ops = TorchOps(x.device)
    for piece in _pieces(math.prod(units.shape[:-1]), unit, max(ops.chunk_values, chunk_values)):
        if units.is_contiguous():
            chunk = units.view(-1, n_in)[piece]
        else:
            index = torch.arange(piece.start, piece.stop, device=x.device)
            chunk = units[torch.unravel_index(index, units.shape[:-1])]
        kernel(ops, chunk.to(getattr(torch, dtype)).contiguous(), flat[piece])
    return out
