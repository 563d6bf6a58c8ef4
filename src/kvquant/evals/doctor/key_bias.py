"""The bias of K, which predicts without running anything where a coarse K cache breaks a model.

A large constant part of K takes up the whole range of a block's scale. Qwen2 and Qwen2.5 have bias norms of
hundreds in a few layers against about 20 in the others, and fall apart with 4-bit K.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from kvquant.errors import ModelFileError
from kvquant.evals.doctor.finding import Finding, Severity
from kvquant.model.gguf_file import GgufModel
from kvquant.model.gguf_header import TensorInfo
from kvquant.policy import ResolvedPolicy, policy_from_layers

OUTLIER_RATIO = 10.0
LEAST_NORM = 100.0
"""A layer stands out when its norm is above both OUTLIER_RATIO times the median and this. Between what is
known: about 20 is harmless, 600 is not.
"""

MAX_BIAS_BYTES = 2**22

COARSE_TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
"""Types with fewer than eight bits: q8_0 K was found to be good enough on such models."""

_NAME = re.compile(r"blk\.(\d+)\.attn_k\.bias")
_DTYPES = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


def key_bias_norms(model: GgufModel) -> dict[int, float]:
    """Return the Euclidean norm of each layer's ``attn_k.bias``, read from the model's file or shards.

    Layers without one, and biases of more than MAX_BIAS_BYTES or in another type than f32, f16 and bf16, are
    left out. Raises ModelFileError when the file cannot be read.
    """
    found: dict[int, float] = {}
    for shard in model.shards:
        try:
            with shard.path.open("rb") as file:
                found |= dict(_norms(file, shard.tensors))
        except OSError as error:
            raise ModelFileError(f"{shard.shown} cannot be read: {error.strerror}") from error
    return found


def _norms(file: BinaryIO, tensors: Iterable[TensorInfo]) -> Iterator[tuple[int, float]]:
    for tensor in tensors:
        match = _NAME.fullmatch(tensor.name)
        if match is None or tensor.type_name not in _DTYPES or tensor.n_bytes is None:
            continue
        # The header's reader has checked that these bytes lie inside the file.
        file.seek(tensor.offset)
        data = file.read(tensor.n_bytes) if 0 < tensor.n_bytes <= MAX_BIAS_BYTES else b""
        if len(data) == tensor.n_bytes > 0:
            yield int(match[1]), float(np.linalg.norm(_decoded(data, tensor.type_name)))


def layers_that_stand_out(norms: Mapping[int, float]) -> list[int]:
    """Return the layers whose norm is above both limits, ascending. norms: of at least one layer."""
    limit = max(LEAST_NORM, OUTLIER_RATIO * median(norms.values()))
    return sorted(layer for layer, norm in norms.items() if norm > limit)


def check_key_bias(norms: Mapping[int, float], policy: ResolvedPolicy | None, subject: str) -> list[Finding]:
    """Find the layers whose bias stands out; a policy that stores their K coarsely must be changed."""
    if not norms:
        return []
    broken = sorted(layer for layer, norm in norms.items() if not np.isfinite(norm))
    if broken:
        what = f"attn_k.bias of layer {_listed(broken)} is not finite"
        return [Finding(Severity.FIX, subject, what, "convert the model again")]
    usual = median(norms.values())
    layers = layers_that_stand_out(norms)
    if not layers:
        return []
    largest = max(norms[layer] for layer in layers)
    what = (
        f"the K bias of layer {_listed(layers)} has a norm of up to {largest:.0f}, the median is {usual:.0f}"
        ": K below 8 bits breaks there"
    )
    if policy is None:
        given = ",".join(f"{layer}:k=q8_0" for layer in layers)
        fix = f"keep their K in q8_0 or f16 in any policy, as --policy {given} does"
        return [Finding(Severity.WARNING, subject, what, fix)]
    coarse = [r.layer for r in policy.layers if r.layer in layers and r.k_type in COARSE_TYPES]
    if coarse:
        what += f"; the policy does so in layer {_listed(coarse)}"
        return [
            Finding(Severity.FIX, subject, what, f"keep K in q8_0 there: --policy {_kept(policy, coarse)}")
        ]
    return [Finding(Severity.NOTE, subject, what + "; the policy does not do that")]


def _kept(policy: ResolvedPolicy, layers: list[int]) -> str:
    """The same policy with K in q8_0 in ``layers``, as text."""
    return str(
        policy_from_layers(
            (entry.layer, "q8_0" if entry.layer in layers else entry.k_type, entry.v_type)
            for entry in policy.layers
        )
    )


def _decoded(data: bytes, type_name: str) -> npt.NDArray[np.float64]:
    values = np.frombuffer(data, _DTYPES[type_name])
    if type_name == "bf16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def _listed(layers: list[int]) -> str:
    return ", ".join(str(layer) for layer in layers)
