"""What a model's KV cache costs in bytes under a policy, exactly as the pinned llama.cpp allocates it."""

from kvquant.memory.budget import largest_context, share_bytes, total_bytes
from kvquant.memory.cells import CacheCells, ContextOptions, cache_cells, server_options
from kvquant.memory.document import BASELINES, baselines, memory_document
from kvquant.memory.fit import check_types, layers_text, not_rotated
from kvquant.memory.kv import KVMemory, LayerMemory, kv_bytes, memory_of

__all__ = [
    "BASELINES",
    "CacheCells",
    "ContextOptions",
    "KVMemory",
    "LayerMemory",
    "baselines",
    "cache_cells",
    "check_types",
    "kv_bytes",
    "largest_context",
    "layers_text",
    "memory_document",
    "memory_of",
    "not_rotated",
    "server_options",
    "share_bytes",
    "total_bytes",
]
