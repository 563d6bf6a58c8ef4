"""The inverse question: how long a context fits a number of bytes."""

from __future__ import annotations

from dataclasses import replace

from kvquant.errors import UsageError
from kvquant.memory.cells import MAX_CONTEXT, PADDING, ContextOptions
from kvquant.memory.kv import KVMemory, memory_of
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedPolicy, parse_policy
from kvquant.units import format_n_bytes


def total_bytes(memory: KVMemory) -> int:
    """K, V and recurrent states together; states of unknown size count as nothing."""
    return memory.kv_bytes + (memory.recurrent_bytes or 0)


def share_bytes(shape: ModelShape, share: float, options: ContextOptions) -> int:
    """Return the bytes of a budget that is a share of the KV cache in f16, recurrent states on top.

    options: as for `memory_of`, whose errors this raises.
    """
    in_f16 = memory_of(shape, parse_policy("*:f16").resolve(shape), options)
    return int(share * in_f16.kv_bytes) + (in_f16.recurrent_bytes or 0)


def largest_context(
    shape: ModelShape, policy: ResolvedPolicy, n_bytes: int, options: ContextOptions | None = None
) -> int:
    """Return the largest context, as llama.cpp rounds it, whose caches and states fit ``n_bytes``.

    options: as for `memory_of`; its n_ctx is ignored. Sizes never fall as the context grows, so a binary
    search over the steps llama.cpp rounds to is exact. Returns the largest context llama.cpp takes when even
    that fits. Raises UsageError when not even the smallest does.
    """
    given = options or ContextOptions(n_ctx=PADDING)
    step = PADDING * (1 if given.kv_unified else given.n_parallel)

    def cost(n_steps: int) -> int:
        return total_bytes(memory_of(shape, policy, replace(given, n_ctx=n_steps * step)))

    if cost(1) > n_bytes:
        raise UsageError(
            f"a budget of {format_n_bytes(n_bytes)} is below {format_n_bytes(cost(1))}, what the smallest "
            f"context ({step} tokens) takes; raise it, lower --parallel, or choose smaller types"
        )
    fits, too_long = 1, MAX_CONTEXT // step + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if cost(middle) <= n_bytes:
            fits = middle
        else:
            too_long = middle
    return fits * step
