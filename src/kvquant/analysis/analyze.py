"""A policy and its rivals on one source of K and V: bytes, errors, and what they come to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar, get_args

from threadpoolctl import threadpool_limits

from kvquant.analysis.measure import LayerMeter, Side, is_rotated, rotatable_sides
from kvquant.analysis.result import (
    Analysis,
    LayerErrors,
    LayerResult,
    MeanErrors,
    SideErrors,
    StoredSide,
    Summary,
)
from kvquant.analysis.sample import Source
from kvquant.analysis.sources import Sampling, open_source
from kvquant.analysis.verdict import verdict
from kvquant.errors import FormatError, TransformError, UsageError
from kvquant.formats.registry import CACHE_TYPES, get_format
from kvquant.memory import KVMemory, kv_bytes, not_rotated
from kvquant.memory.document import DefaultTypes
from kvquant.model.capture import KVCapture
from kvquant.model.shape import ModelShape
from kvquant.policy import Policy, ResolvedLayer, ResolvedPolicy, parse_policy
from kvquant.transform import KVTransform, check_layers, read_transform, transform_file
from kvquant.transform.order import missing_order

DEFAULT_N_CTX = 4096
"""Tokens of context that bytes are counted for when none is asked for."""

BASELINES = ("f16", "q8_0", "k8v4", "q5_0", "q4_0", "iq4_nl", "tq_mse_4b", "tq_mse_3b", "tq_mse_2b")
"""What every policy is compared with: presets, from the most accurate to the smallest."""

Rotation = Literal["on", "off", "both"]
"""llama.cpp's Hadamard rotation: where llama.cpp applies it, nowhere, or both measured side by side."""

_MAX_WORKERS = 4

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Candidate:
    """A policy on the model at hand: the types and the bytes of every cached layer."""

    name: str
    policy: Policy
    resolved: ResolvedPolicy
    memory: KVMemory

    @property
    def layers(self) -> tuple[ResolvedLayer, ...]:
        return self.resolved.layers

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(map(str, self.resolved.warnings))

    @property
    def kv_bytes(self) -> int:
        return self.memory.kv_bytes

    @property
    def n_ctx(self) -> int:
        return self.memory.cells.n_ctx

    @property
    def runnable(self) -> bool:
        return all(layer.k_type in CACHE_TYPES and layer.v_type in CACHE_TYPES for layer in self.layers)


def analyze(
    policy: Policy | str,
    *,
    shape: ModelShape | None = None,
    profile: str | None = None,
    capture: KVCapture | str | Path | None = None,
    n_ctx: int = DEFAULT_N_CTX,
    default_k: str = "f16",
    default_v: str = "f16",
    baselines: Sequence[str] = BASELINES,
    rotation: Rotation = "both",
    seed: int = 0,
    sampling: Sampling | None = None,
    transform: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """Measure what ``policy`` costs and saves, per layer and in total, beside ``baselines`` on the same data.

    policy, baselines: policy text or preset names. shape, profile, capture, seed, sampling: `open_source`;
    without any, a 32-layer model with the default profile. n_ctx: tokens of context to count bytes for,
    rounded up as llama.cpp does. rotation: "on" measures as llama.cpp stores, "off" without its rotation,
    "both" fills `unrotated` too. transform: a file of `kvquant calibrate` that K goes through under the
    policy, not under the baselines; needs a capture of its model. progress: called with (layers done, layers)
    as each layer ends, from this thread.

    Raises PolicyError, UsageError, ShapeError, CaptureError, TransformError, and FormatError when a type of
    the policy cannot store the model's heads; a baseline that cannot is left out with a warning.
    """
    if rotation not in get_args(Rotation):
        raise UsageError(f"rotation {rotation!r} is unknown; known: {', '.join(get_args(Rotation))}")
    source = open_source(shape, profile, capture, seed, sampling)
    wanted = _candidate("policy", policy, source.shape, n_ctx, default_k, default_v)
    plain = not_rotated(source.shape, wanted.resolved) if rotation != "off" else ""
    in_f16 = _candidate("f16", "*:f16", source.shape, n_ctx).kv_bytes
    rivals, left_out = _rivals(baselines, source.shape, n_ctx)
    candidates = [wanted, *rivals]
    on = rotation != "off"
    found = None if transform is None else _transform_for(Path(transform), source)
    handle = None if transform is None or found is None else transform_file(Path(transform), found)
    too_deep = None if handle is None else handle.depth_warning(source.info.n_tokens)
    as_asked = _measure_layers(source, candidates, on, rotation == "both", found, progress)

    filled = source.shape.filled_kv_indices
    totals = [
        _summary(
            candidate,
            filled,
            in_f16,
            [layer[i][0] for layer in as_asked],
            [layer[i][1] for layer in as_asked],
        )
        for i, candidate in enumerate(candidates)
    ]
    layers = tuple(
        _layer_result(wanted, i, source.shape, on, *measured[0])
        for i, measured in zip(filled, as_asked, strict=True)
    )
    by_name = {rival.name: total for rival, total in zip(rivals, totals[1:], strict=True)}
    return Analysis(
        policy=str(wanted.policy),
        default=DefaultTypes(default_k.lower(), default_v.lower()),
        model=source.shape.name,
        n_ctx=wanted.n_ctx,
        rotation=rotation,
        source=source.info,
        layers=layers,
        total=totals[0],
        baselines=by_name,
        verdict=verdict(layers, totals[0], by_name, wanted.n_ctx, source.info),
        warnings=(
            *wanted.warnings,
            *(line for line in (plain, missing_order(wanted.resolved, found)) if line),
            *left_out,
            *([too_deep] if too_deep else []),
        ),
        transform=None if handle is None else handle.used,
    )


def _candidate(
    name: str,
    policy: Policy | str,
    shape: ModelShape,
    n_ctx: int,
    default_k: str = "f16",
    default_v: str = "f16",
) -> _Candidate:
    parsed = policy if isinstance(policy, Policy) else parse_policy(policy)
    resolved = parsed.resolve(shape, default_k, default_v)
    memory = kv_bytes(shape, resolved, n_ctx=n_ctx)
    return _Candidate(name, parsed, resolved, memory)


def _transform_for(path: Path, source: Source) -> KVTransform:
    """Read a transform and hold it against the captured model."""
    if source.info.kind != "capture":
        raise UsageError("--transform: synthetic keys are no model's; give a capture of the model it is for")
    transform, shape = read_transform(path), source.shape
    if (transform.model.arch, transform.model.n_layer) != (shape.arch, shape.n_layer):
        raise TransformError(
            f"{path} was made for {transform.model.arch} of {transform.model.n_layer} layers; the capture is "
            f"of {shape.arch} with {shape.n_layer}: calibrate that model"
        )
    check_layers(transform, shape, str(path))
    return transform


def _rivals(names: Sequence[str], shape: ModelShape, n_ctx: int) -> tuple[list[_Candidate], list[str]]:
    """The baselines this model can have, and why the others are left out."""
    found, left_out = [], []
    for name in dict.fromkeys(names):
        try:
            found.append(_candidate(name, name, shape, n_ctx))
        except FormatError as error:
            left_out.append(f"baseline {name} left out: {error}")
    return found, left_out


_Measured = tuple[LayerErrors, LayerErrors | None]


def _measure_layers(
    source: Source,
    candidates: Sequence[_Candidate],
    rotation: bool,
    also_unrotated: bool,
    transform: KVTransform | None,
    progress: Callable[[int, int], None] | None,
) -> list[list[_Measured]]:
    """For each layer that fills a cache and each candidate: errors, and those without rotation if wanted.

    The first candidate's keys go through the transform.
    """

    def measure(meter: LayerMeter, kv_index: int) -> list[_Measured]:
        measured: list[_Measured] = []
        for index, candidate in enumerate(candidates):
            types = (candidate.layers[kv_index].k_type, candidate.layers[kv_index].v_type)
            first = index == 0
            unrotated = meter.errors(*types, rotation=False, transformed=first) if also_unrotated else None
            measured.append((meter.errors(*types, rotation=rotation, transformed=first), unrotated))
        return measured

    return map_layers(source, measure, progress, transform)


def map_layers(
    source: Source,
    measure: Callable[[LayerMeter, int], _T],
    progress: Callable[[int, int], None] | None = None,
    transform: KVTransform | None = None,
) -> list[_T]:
    """Return ``measure(meter, kv_index)`` for each of ``source``'s `ModelShape.filled_kv_indices`, in order.

    ``measure`` runs in several threads at once, one layer each. progress: as in `analyze`. transform: for the
    meters, which use it where they are asked to.
    """
    filled = source.shape.filled_kv_indices

    def measured(index: int) -> _T:
        kv_index = filled[index]
        layer = source.shape.kv_layers[kv_index]
        own = None if transform is None else transform.of(layer)
        return measure(LayerMeter(source.layer(layer), rotatable_sides(source.shape, layer), own), kv_index)

    results = []
    for result in _in_order(measured, len(filled)):
        results.append(result)
        if progress is not None:
            progress(len(results), len(filled))
    return results


def _in_order(function: Callable[[int], _T], n: int) -> Iterator[_T]:
    """Yield function(0) … function(n-1), computed by a few threads.

    Each layer's matrices are too small to be worth splitting: BLAS gets one thread, layers run side by side.
    """
    n_workers = min(_MAX_WORKERS, os.cpu_count() or 1, n)
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(n_workers) as pool:
        futures = [pool.submit(function, i) for i in range(n)]
        try:
            for future in futures:
                yield future.result()
        finally:
            # After an error or an interrupt, layers not begun are not worth waiting for.
            pool.shutdown(cancel_futures=True)


def _summary(
    candidate: _Candidate,
    filled: tuple[int, ...],
    in_f16: int,
    errors: list[LayerErrors],
    unrotated: list[LayerErrors | None],
) -> Summary:
    known = [layer for layer in unrotated if layer is not None]
    means = MeanErrors.over(errors)
    return Summary(
        **{entry.name: getattr(means, entry.name) for entry in fields(means) if entry.init},
        policy=str(candidate.policy),
        runnable=candidate.runnable,
        kv_bytes=candidate.kv_bytes,
        kv_bytes_f16=in_f16,
        unrotated=MeanErrors.over(known) if known else None,
        layer_attn_output_rel_error=tuple(layer.attn_output_rel_error for layer in errors),
        layer_bytes=tuple(candidate.memory.layers[i].n_bytes for i in filled),
    )


def _layer_result(
    candidate: _Candidate,
    kv_index: int,
    shape: ModelShape,
    rotation: bool,
    errors: LayerErrors,
    unrotated: LayerErrors | None,
) -> LayerResult:
    types, memory = candidate.layers[kv_index], candidate.memory.layers[kv_index]
    layer = shape.layers[types.layer]
    rotatable = rotatable_sides(shape, types.layer) if rotation else frozenset[Side]()

    def stored(found: SideErrors, type_name: str, side: Side, head_dim: int, n_bytes: int) -> StoredSide:
        return StoredSide(
            mse=found.mse,
            nmse=found.nmse,
            attn_output_rel_error=found.attn_output_rel_error,
            type=type_name,
            bits_per_value=get_format(type_name).bits_per_value(head_dim),
            bytes=n_bytes,
            rotated=is_rotated(type_name, side, rotatable),
        )

    return LayerResult(
        layer=types.layer,
        kv_index=kv_index,
        k=stored(errors.k, types.k_type, "k", layer.head_dim_k, memory.k_bytes),
        v=stored(errors.v, types.v_type, "v", layer.head_dim_v, memory.v_bytes),
        attn_logit_rmse=errors.attn_logit_rmse,
        attn_kl=errors.attn_kl,
        attn_output_rel_error=errors.attn_output_rel_error,
        unrotated=unrotated,
    )
