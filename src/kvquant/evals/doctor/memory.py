"""What a context costs beside the weights, and whether the model can use one that long."""

from __future__ import annotations

from kvquant.errors import KVQuantError
from kvquant.evals.doctor.finding import Finding, Severity
from kvquant.memory import ContextOptions, KVMemory, largest_context, memory_of, total_bytes
from kvquant.model.gguf_file import GgufModel
from kvquant.model.gguf_header import GgufHeader, Scalar
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedPolicy
from kvquant.units import format_n_bytes

_SUBJECT = "memory"


def check_memory(
    shape: ModelShape,
    policy: ResolvedPolicy,
    options: ContextOptions,
    file_bytes: int,
    available: int | None,
) -> list[Finding]:
    """Compare weights, KV cache and recurrent states with free memory.

    file_bytes: 0 when the weights are not known. available: None when that is not known.
    """
    try:
        memory = memory_of(shape, policy, options)
    except KVQuantError as error:
        what, _, fix = str(error).rpartition("; ")
        fix = fix if what else "change the policy or the context"
        return [Finding(Severity.FIX, _SUBJECT, what or str(error), fix)]
    what = _needs(memory, options, file_bytes)
    if available is None:
        return [Finding(Severity.NOTE, _SUBJECT, f"{what}; free memory is unknown here")]
    what += f"; {format_n_bytes(available)} are free"
    if file_bytes + total_bytes(memory) <= available:
        return [Finding(Severity.NOTE, _SUBJECT, what)]
    fix = "free some memory, or take a smaller model"
    if file_bytes < available:
        fix = _smaller_context(shape, policy, options, available - file_bytes) or fix
    return [Finding(Severity.FIX, _SUBJECT, what, fix)]


def check_context(shape: ModelShape, options: ContextOptions, model: GgufModel | None) -> list[Finding]:
    """Find a context that is longer than what the model was trained on and its file scales to."""
    trained = shape.n_ctx_train
    if not trained:
        return []
    usable = trained if model is None else max(trained, _scaled_context(model.header, shape.arch, trained))
    n_ctx = options.n_ctx if options.kv_unified else options.n_ctx // options.n_parallel
    if n_ctx <= usable:
        return []
    longest = usable if options.kv_unified else usable * options.n_parallel
    what = (
        f"a sequence of {n_ctx} tokens is longer than the {usable} that the model was trained on"
        f"{' and its file scales to' if usable > trained else ', and its file does not scale positions'}"
    )
    fix = f"use at most --ctx {longest}, or give llama-server --rope-scaling"
    return [Finding(Severity.WARNING, "context", what, fix)]


def _scaled_context(header: GgufHeader, arch: str, trained: int) -> int:
    """Tokens that the file's own RoPE scaling reaches; llama_model_base::load_hparams reads these keys."""
    if header.text(f"{arch}.rope.scaling.type") == "none":
        return 0
    factor = header.values.get(f"{arch}.rope.scaling.factor", header.values.get(f"{arch}.rope.scale_linear"))
    value = factor.value if isinstance(factor, Scalar) else None
    if not isinstance(value, float) or not 1 < value < 2**20:
        return 0
    return int((header.number(f"{arch}.rope.scaling.original_context_length") or trained) * value)


def _needs(memory: KVMemory, options: ContextOptions, file_bytes: int) -> str:
    parts = [f"{format_n_bytes(memory.kv_bytes)} of KV cache"]
    if memory.recurrent_bytes:
        parts.append(f"{format_n_bytes(memory.recurrent_bytes)} of recurrent states")
    what = f"a context of {options.n_ctx} for {options.sequences_text} needs {' and '.join(parts)}"
    if memory.recurrent_bytes is None:
        what += " and recurrent states, whose size this shape does not say"
    return what + (f", beside {format_n_bytes(file_bytes)} of weights" if file_bytes else "")


def _smaller_context(
    shape: ModelShape, policy: ResolvedPolicy, options: ContextOptions, budget: int
) -> str | None:
    try:
        fits = largest_context(shape, policy, budget, options)
    except KVQuantError:
        return None
    return f"use at most -c {fits}, or smaller types"
