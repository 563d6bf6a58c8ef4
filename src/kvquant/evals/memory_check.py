"""What a policy's KV cache takes, from three sources that must agree: the log, the arithmetic, the slot file.

The log says what llama-server allocated. `kvquant.memory` says what it should have allocated. A saved slot
holds the rows themselves, and so proves which types they are stored in, whatever the log claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from kvquant.errors import CaptureError, LlamaError
from kvquant.llama.logs import KVLog
from kvquant.llama.server import LlamaServer
from kvquant.llama.state import SequenceState, StoredRows, load_state
from kvquant.memory import ContextOptions, KVMemory, LayerMemory, memory_of
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedPolicy
from kvquant.results.validation import LayerBytes, Memory

PROMPT = "Seven small cats slept near the warm stove while rain fell on the old tin roof."
"""What the slot that is looked at holds. Any text would do: a row's bytes do not depend on what it says."""

_MIB_ERROR = 0.005
"""llama.cpp prints buffer sizes in MiB with two decimals."""

_SLOT = "memory-check"

_Side = tuple[str, int]
"""A type and the bytes stored in it, of K or of V."""


def check_memory(
    server: LlamaServer,
    shape: ModelShape | None,
    policy: ResolvedPolicy | None,
    options: ContextOptions | None = None,
) -> Memory:
    """Look at the cache of a running server; its first slot is overwritten by a short prompt.

    shape, policy: what the server was started with, resolved against the model's shape; None for a model
    whose memory is not known: then nothing is computed, and the log alone says what it takes. options: what
    its own arguments come to, by default its context and its sequences. Call it when the server has done its
    work: the peak is the one so far. The ratio to a baseline is not known here. Raises LlamaError when the
    server fails.
    """
    if options is None:
        options = ContextOptions(server.options.n_ctx, server.options.n_parallel)
    log = server.kv_log()
    if shape is None or policy is None:
        server.completion(PROMPT, 0, cache_prompt=False, id_slot=0)
        return Memory(log.n_bytes or None, None, None, server.peak_n_bytes())
    computed = memory_of(shape, policy, options)
    findings = log_findings(log, computed)
    answer = server.completion(PROMPT, 0, cache_prompt=False, id_slot=0)
    state = None
    try:
        state = load_state(server.save_slot(0, _SLOT), shape)
    except (CaptureError, LlamaError) as error:
        findings.append(f"slot: {error}")
    else:
        findings += slot_findings(state, computed, answer.get("tokens_evaluated"))
    return Memory(
        kv_bytes_logged=log.n_bytes or None,
        kv_bytes_computed=computed.kv_bytes,
        kv_bytes_slot=None if state is None else slot_bytes(state, computed),
        n_slot_tokens=None if state is None else len(state.tokens),
        peak_rss_bytes=server.peak_n_bytes(),
        findings=tuple(findings),
        layers=tuple(
            LayerBytes(layer.layer, layer.k_type, layer.v_type, layer.k_bytes, layer.v_bytes)
            for layer in computed.layers
        ),
    )


def log_findings(log: KVLog, computed: KVMemory) -> list[str]:
    """Return where the log contradicts the arithmetic: a layer's type or bytes, the sum of the buffers."""
    found = []
    if log.layers:
        logged = {layer.layer: layer for layer in log.layers}
        for layer in computed.layers:
            entry = logged.pop(layer.layer, None)
            tensors = [tensor for tensor in (entry.k, entry.v) if tensor] if entry else []
            seen = [(tensor.type, tensor.n_bytes) for tensor in tensors]
            found += _differences(f"log, layer {layer.layer}", seen, _types_and_bytes(layer))
        found += [f"log, layer {layer}: a cache where none is computed" for layer in logged]
    buffers = sum(log.buffers_mib)
    mib = computed.kv_bytes / 2**20
    # Each buffer is rounded by itself; the last term is for the sum in binary.
    if log.buffers_mib and abs(buffers - mib) > _MIB_ERROR * len(log.buffers_mib) + 1e-9:
        found.append(f"log: KV buffers of {buffers:.2f} MiB, computed {mib:.2f} MiB")
    return found


def slot_findings(state: SequenceState, computed: KVMemory, n_tokens: object) -> list[str]:
    """Return where a saved slot contradicts the arithmetic: a layer's type or row, the number of tokens.

    n_tokens: what the server says it has evaluated, anything but a number if it does not say.
    """
    found = []
    if isinstance(n_tokens, int) and len(state.tokens) != n_tokens:
        found.append(f"slot: holds {len(state.tokens)} tokens, the prompt has {n_tokens}")
    layers = {layer.layer: layer for layer in computed.layers}
    for stored in state.layers:
        layer = layers[stored.layer]
        seen = [_row(rows) for rows in (stored.k, stored.v) if rows]
        expected = [(name, n_bytes // layer.n_cells) for name, n_bytes in _types_and_bytes(layer)]
        found += _differences(f"slot, a row of layer {stored.layer}", seen, expected)
    return found


def slot_bytes(state: SequenceState, computed: KVMemory) -> int:
    """Return what the cache takes by the rows a slot holds: each layer's row bytes times its cells."""
    n_cells = {layer.layer: layer.n_cells for layer in computed.layers}
    rows = [(stored.layer, side) for stored in state.layers for side in (stored.k, stored.v) if side]
    return sum(_row(side)[1] * n_cells[layer] for layer, side in rows)


def _types_and_bytes(layer: LayerMemory) -> list[_Side]:
    sides = [(layer.k_type, layer.k_bytes)]
    return sides + ([(layer.v_type, layer.v_bytes)] if layer.v_bytes else [])


def _differences(what: str, seen: Sequence[_Side], expected: Sequence[_Side]) -> list[str]:
    """A line for K and for V where they differ; a V that only one of the two has differs."""
    pairs = zip("KV", zip_longest(seen, expected), strict=False)
    return [f"{what}, {side}: {_says(a)}, computed {_says(b)}" for side, (a, b) in pairs if a != b]


def _row(rows: StoredRows) -> _Side:
    """The type of stored rows and the bytes of one."""
    n_cells = rows.data.shape[1] if rows.transposed else rows.data.shape[0]
    return rows.type, rows.data.nbytes // n_cells


def _says(side: _Side | None) -> str:
    return "nothing" if side is None else f"{side[0]} with {side[1]} B"
