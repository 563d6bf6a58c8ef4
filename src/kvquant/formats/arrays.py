"""The few array operations that NumPy and Torch spell differently, so that a format is written once for both.

Everything else in `hadamard` and `turboquant` is operators (`+ * >= & <<`) and methods both libraries share.
Each of those is one correctly rounded IEEE operation per element on either side, which is why the bytes
agree.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from kvquant.formats.tensors import is_tensor

Array = Any
"""A NumPy array or a Torch tensor. Functions return the kind they were given."""


def namespace(x: Array) -> ModuleType:
    """Return the module that owns ``x``: torch for a tensor, numpy for everything else."""
    return sys.modules["torch"] if is_tensor(x) else np


def cast(x: Array, dtype: str) -> Array:
    """Return ``x`` in the dtype called ``dtype`` ("float32", "uint8", …), rounding to nearest even."""
    wanted = getattr(namespace(x), dtype)
    return x.to(wanted) if is_tensor(x) else x.astype(wanted, copy=False)


def like(table: np.ndarray[Any, Any], x: Array) -> Array:
    """Return the NumPy ``table`` as an array of the kind, and on the device, of ``x``."""
    return namespace(x).asarray(table, device=x.device) if is_tensor(x) else table


def lookup(table: np.ndarray[Any, Any], index: Array) -> Array:
    """Return ``table[index]`` element by element, for integer ``index`` of any shape."""
    return like(table, index)[index.long()] if is_tensor(index) else table.take(index)


def contiguous(x: Array) -> Array:
    """Return ``x`` laid out row-major, copied only when it is not."""
    return x.contiguous() if is_tensor(x) else np.ascontiguousarray(x)


def copied(x: Array) -> Array:
    """Return a row-major copy of ``x``, aligned for a view in a wider dtype."""
    return x.clone(memory_format=namespace(x).contiguous_format) if is_tensor(x) else x.copy()


def empty(shape: tuple[int, ...], dtype: str, x: Array) -> Array:
    """Return an uninitialised array of the kind, and on the device, of ``x``."""
    if is_tensor(x):
        torch = namespace(x)
        return torch.empty(shape, dtype=getattr(torch, dtype), device=x.device)
    return np.empty(shape, dtype=dtype)
