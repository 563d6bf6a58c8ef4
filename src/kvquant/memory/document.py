"""What `kvquant memory --json` says: the keys that analyses use too, without their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvquant.errors import KVQuantError
from kvquant.formats.registry import get_format
from kvquant.memory.cells import ContextOptions
from kvquant.memory.kv import KVMemory, LayerMemory, memory_of
from kvquant.model.shape import LayerShape, ModelShape
from kvquant.policy import ResolvedPolicy, parse_policy
from kvquant.results.transform import TransformUsed

BASELINES = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True)
class SideBytes:
    """How K or V of a layer is stored. bits_per_value: scales included."""

    type: str
    bits_per_value: float
    bytes: int


@dataclass(frozen=True)
class LayerCache:
    """One layer that keeps a cache. window: tokens, 0 for full attention. v: None where it is a part of K."""

    layer: int
    kv_index: int
    n_cells: int
    window: int
    k: SideBytes
    v: SideBytes | None


@dataclass(frozen=True)
class BytesBesideF16:
    """Bytes of K and V of all layers, and of an f16 cache. ratio_vs_f16: None where that has no bytes."""

    kv_bytes: int
    kv_bytes_f16: int
    ratio_vs_f16: float | None


@dataclass(frozen=True, kw_only=True)
class PolicyBytes(BytesBesideF16):
    """The same of the policy asked for.

    runnable: whether llama.cpp has a cache of every type in it. recurrent_bytes: states of recurrent layers,
    which come on top; None when the shape does not say how large they are.
    """

    runnable: bool
    recurrent_bytes: int | None


@dataclass(frozen=True)
class ContextUsed:
    """The context as llama.cpp rounds it and the options that decide its size (`ContextOptions`)."""

    n_ctx_seq: int
    n_parallel: int
    kv_unified: bool
    swa_full: bool
    n_batch: int
    n_ubatch: int
    flash_attn: bool


@dataclass(frozen=True)
class DefaultTypes:
    """The types of the layers that no rule names."""

    k: str
    v: str


@dataclass(frozen=True)
class MemoryDocument:
    """What a policy's cache takes on a model.

    policy: canonical text. n_ctx: tokens for all sequences, as llama.cpp rounds them. baselines: uniform
    types that llama.cpp would take here. budget_bytes: what the context was to fit into, None for none.
    transform: of K, None for none; transform_bytes: what llama.cpp keeps of it beside the cache.
    """

    model: str
    policy: str
    default: DefaultTypes
    n_ctx: int
    context: ContextUsed
    budget_bytes: int | None
    layers: tuple[LayerCache, ...]
    total: PolicyBytes
    baselines: Mapping[str, BytesBesideF16]
    warnings: tuple[str, ...]
    transform: TransformUsed | None = None
    transform_bytes: int = 0


def uniform_memory(shape: ModelShape, type_name: str, options: ContextOptions) -> KVMemory:
    """Return the memory with every cached layer in one type. Raises as `memory_of` does."""
    return memory_of(shape, parse_policy(f"*:{type_name}").resolve(shape), options)


def baselines(shape: ModelShape, options: ContextOptions) -> dict[str, KVMemory]:
    """Return the memory of each uniform type of BASELINES that llama.cpp would take here."""
    found = {}
    for name in BASELINES:
        try:
            found[name] = uniform_memory(shape, name, options)
        except KVQuantError:
            continue
    return found


def memory_document(
    shape: ModelShape,
    policy: ResolvedPolicy,
    policy_text: str,
    options: ContextOptions,
    default: tuple[str, str] = ("f16", "f16"),
    budget_bytes: int | None = None,
) -> MemoryDocument:
    """Return what one policy takes, ``policy_text`` its canonical form. Raises as `memory_of` does.

    default: the (K, V) types that ``policy`` was resolved with.
    """
    memory = memory_of(shape, policy, options)
    in_f16 = uniform_memory(shape, "f16", options).kv_bytes
    return MemoryDocument(
        model=shape.name,
        policy=policy_text,
        default=DefaultTypes(*default),
        n_ctx=memory.cells.n_ctx,
        context=ContextUsed(
            n_ctx_seq=memory.cells.n_ctx_seq,
            n_parallel=options.n_parallel,
            kv_unified=options.kv_unified,
            swa_full=options.swa_full,
            n_batch=options.n_batch,
            n_ubatch=options.n_ubatch,
            flash_attn=options.flash_attn,
        ),
        budget_bytes=budget_bytes,
        layers=tuple(_layer(shape.layers[layer.layer], layer) for layer in memory.layers),
        total=PolicyBytes(
            kv_bytes=memory.kv_bytes,
            kv_bytes_f16=in_f16,
            ratio_vs_f16=_ratio(memory, in_f16),
            runnable=not memory.not_runnable,
            recurrent_bytes=memory.recurrent_bytes,
        ),
        baselines={
            name: BytesBesideF16(uniform.kv_bytes, in_f16, _ratio(uniform, in_f16))
            for name, uniform in baselines(shape, options).items()
        },
        warnings=tuple(str(warning) for warning in policy.warnings),
    )


def _ratio(memory: KVMemory, in_f16: int) -> float | None:
    return memory.kv_bytes / in_f16 if in_f16 else None


def _layer(shape: LayerShape, memory: LayerMemory) -> LayerCache:
    return LayerCache(
        layer=memory.layer,
        kv_index=memory.kv_index,
        n_cells=memory.n_cells,
        window=shape.window,
        k=_side(memory.k_type, shape.head_dim_k, memory.k_bytes),
        # Under multi-head latent attention V is a part of K: there is nothing to describe.
        v=_side(memory.v_type, shape.head_dim_v, memory.v_bytes) if shape.stores_v else None,
    )


def _side(type_name: str, head_dim: int, n_bytes: int) -> SideBytes:
    return SideBytes(type_name, get_format(type_name).bits_per_value(head_dim), n_bytes)
