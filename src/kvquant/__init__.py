"""Choose a KV-cache type per layer for llama.cpp, and know what it costs.

The names below are the public API. They load on first use: importing the package touches no file and loads
neither torch, matplotlib nor click.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvquant.analysis import Analysis as Analysis
    from kvquant.analysis import analyze as analyze
    from kvquant.errors import KVQuantError as KVQuantError
    from kvquant.formats.api import dequantize as dequantize
    from kvquant.formats.api import format_names as format_names
    from kvquant.formats.api import quantize as quantize
    from kvquant.memory.kv import kv_bytes as kv_bytes
    from kvquant.model.architectures import read_shape as read_shape
    from kvquant.model.shape import ModelShape as ModelShape
    from kvquant.policy import Policy as Policy
    from kvquant.policy import parse_policy as parse_policy

_PUBLIC = {
    "Analysis": "kvquant.analysis",
    "KVQuantError": "kvquant.errors",
    "ModelShape": "kvquant.model.shape",
    "Policy": "kvquant.policy",
    "analyze": "kvquant.analysis",
    "dequantize": "kvquant.formats.api",
    "format_names": "kvquant.formats.api",
    "kv_bytes": "kvquant.memory.kv",
    "parse_policy": "kvquant.policy",
    "quantize": "kvquant.formats.api",
    "read_shape": "kvquant.model.architectures",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kvquant' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
