"""How many cells llama.cpp gives a KV cache: context padding, streams per sequence, the sliding-window cache.

A cell holds one token's K and V row in every layer of its cache. Sources at the pin: the constructor of
llama_context (src/llama-context.cpp) and that of llama_kv_cache_iswa (src/llama-kv-cache-iswa.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvquant.errors import UsageError

PADDING = 256
"""Contexts and sliding-window caches are rounded up to a multiple of this many cells."""

MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ, src/llama-cparams.h."""

MAX_CONTEXT = 2**31 - PADDING
"""The largest context that is a multiple of PADDING and fits llama.cpp's signed 32-bit option."""

SERVER_PARALLEL = 4
"""Slots of a llama-server without -np, which then share one buffer (tools/server/server.cpp)."""

DEFAULT_BATCH = 2048
DEFAULT_UBATCH = 512


@dataclass(frozen=True)
class ContextOptions:
    """The options of llama-server that decide cache sizes, under its names.

    n_ctx: -c, tokens for all sequences together. n_parallel: -np, sequences (slots). kv_unified: -kvu, one
    buffer for all sequences. swa_full: --swa-full. n_batch: -b. n_ubatch: -ub. flash_attn: False for -fa off
    (auto allocates as on does).
    """

    n_ctx: int
    n_parallel: int = 1
    kv_unified: bool = False
    swa_full: bool = False
    n_batch: int = DEFAULT_BATCH
    n_ubatch: int = DEFAULT_UBATCH
    flash_attn: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.n_ctx <= MAX_CONTEXT:
            raise UsageError(f"a context of {self.n_ctx} tokens; llama.cpp takes 1 to {MAX_CONTEXT}")
        if not 1 <= self.n_parallel <= MAX_SEQUENCES:
            raise UsageError(f"{self.n_parallel} parallel sequences; llama.cpp takes 1 to {MAX_SEQUENCES}")
        for name, value in (("batch", self.n_batch), ("ubatch", self.n_ubatch)):
            if not 1 <= value <= MAX_CONTEXT:
                raise UsageError(f"a {name} of {value} tokens; it must be from 1 to {MAX_CONTEXT}")

    @property
    def sequences_text(self) -> str:
        """How many sequences there are and where they live, for people."""
        if self.n_parallel == 1:
            return "1 sequence"
        return f"{self.n_parallel} sequences in {'one buffer' if self.kv_unified else 'their own buffers'}"


def server_options(n_ctx: int, n_parallel: int | None = None, *, kv_unified: bool = False) -> ContextOptions:
    """The options of a llama-server started so; without -np it serves SERVER_PARALLEL from one buffer."""
    n_slots = SERVER_PARALLEL if n_parallel is None else n_parallel
    return ContextOptions(n_ctx, n_slots, kv_unified=kv_unified or n_parallel is None)


@dataclass(frozen=True)
class CacheCells:
    """What llama.cpp makes of the options.

    n_ctx: tokens for all sequences, after rounding. n_ctx_seq: tokens one sequence can hold. n_stream:
    buffers per layer. base: cells per buffer of full-attention layers; window: of sliding-window layers, 0
    where the model has none.
    """

    n_ctx: int
    n_ctx_seq: int
    n_stream: int
    base: int
    window: int


def cache_cells(options: ContextOptions, window: int) -> CacheCells:
    """Return the cells for a model whose sliding-window layers attend to ``window`` tokens.

    Raises UsageError where llama.cpp's 32-bit arithmetic would overflow.
    """
    n_ctx = _padded(options.n_ctx)
    if options.kv_unified:
        n_ctx_seq = n_ctx
    else:
        n_ctx_seq = _padded(n_ctx // options.n_parallel)
        n_ctx = n_ctx_seq * options.n_parallel
    n_stream = 1 if options.kv_unified else options.n_parallel
    window_cells = _window_cells(options, window, n_ctx_seq) if window else 0
    return CacheCells(n_ctx, n_ctx_seq, n_stream, base=n_ctx_seq, window=window_cells)


def _window_cells(options: ContextOptions, window: int, n_ctx_seq: int) -> int:
    """A window and a batch of tokens for every sequence in the buffer, but never more than a full cache."""
    if options.swa_full:
        return n_ctx_seq
    # The batch limits see the context as it was asked for, before rounding.
    n_ubatch = min(options.n_ctx, options.n_batch, options.n_ubatch)
    kept = window * (options.n_parallel if options.kv_unified else 1) + n_ubatch
    if kept >= 2**32:
        raise UsageError(
            f"a window of {window} tokens for {options.n_parallel} sequences is more than llama.cpp can count"
        )
    return _padded(min(n_ctx_seq, kept))


def _padded(n: int) -> int:
    return -(-n // PADDING) * PADDING
