"""The errors of one layer for any pair of K and V types; what one pair computed serves the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvquant.analysis.metrics import (
    Float64Array,
    attend,
    attention_logits,
    kl_divergence,
    log_softmax,
    logit_rmse,
    mse,
    nmse,
    relative_error,
)
from kvquant.analysis.result import LayerErrors, SideErrors
from kvquant.analysis.sample import LayerSample
from kvquant.formats.base import Float32Array, Format
from kvquant.formats.storage import rotation_block, storage_format
from kvquant.memory.fit import ROTATED_MULTIPLE, rotated_layers
from kvquant.model.shape import ModelShape
from kvquant.transform import LayerTransform

Side = Literal["k", "v"]


def rotatable_sides(shape: ModelShape, layer: int) -> frozenset[Side]:
    """Return the sides of ``layer`` that llama.cpp rotates when their type is quantized."""
    sides: tuple[Side, Side] = ("k", "v")
    return frozenset(side for side in sides if layer in rotated_layers(shape, side.upper()))


def is_rotated(type_name: str, side: Side, rotatable: frozenset[Side]) -> bool:
    """Return whether ``side`` is rotated before it is stored as ``type_name``."""
    return rotation_block(type_name, ROTATED_MULTIPLE, side, rotate=side in rotatable) is not None


def stored_format(type_name: str, head_dim: int, side: Side, rotatable: frozenset[Side]) -> Format:
    """Return the format of one side: ``type_name``, behind the rotation that it gets there."""
    return storage_format(type_name, head_dim, side, rotate=side in rotatable)


def round_trip(x: Float32Array, fmt: Format) -> Float32Array:
    """Return what a cache of format ``fmt`` gives back for ``x``, float32 (n_tokens, n_head_kv, head_dim)."""
    return np.asarray(fmt.dequantize(fmt.quantize(x), x.shape[-1]), dtype=np.float32)


@dataclass(frozen=True)
class _StoredKeys:
    errors: SideErrors
    logit_rmse: float | None
    kl: float | None
    probabilities: Float64Array


@dataclass(frozen=True)
class _StoredValues:
    errors: SideErrors
    values: Float32Array


class LayerMeter:
    """Measures one layer. ``errors`` may be asked for many pairs; each type is quantized once per side.

    rotatable: the sides llama.cpp rotates when their type is quantized, see `rotatable_sides`. transform: of
    all KV heads of the layer; None where K is stored as it is.
    """

    def __init__(
        self, sample: LayerSample, rotatable: frozenset[Side], transform: LayerTransform | None = None
    ) -> None:
        self._sample = sample
        self._rotatable = rotatable
        if transform is not None and sample.heads is not None:
            transform = transform.of_heads(sample.heads)
        self._transform = transform
        self._visible = sample.visible
        self._logits = attention_logits(sample.q, sample.k, sample.logit_scale)
        self._log_p = log_softmax(self._logits, self._visible)
        self._p = np.exp(self._log_p)
        self._output = attend(self._p, sample.v)
        self._keys: dict[tuple[Format, bool], _StoredKeys] = {}
        self._values: dict[Format, _StoredValues] = {}
        self._pairs: dict[tuple[Format, Format, bool], LayerErrors] = {}

    def errors(
        self, k_type: str, v_type: str, rotation: bool = True, *, transformed: bool = False
    ) -> LayerErrors:
        """Return the errors with K as ``k_type``, V as ``v_type``, rotated as llama.cpp does or not at all.

        transformed: K goes through the layer's transform before it is stored, where it has one. Raises
        FormatError for an unknown type or one that cannot store the layer's head dim.
        """
        rotatable = self._rotatable if rotation else frozenset[Side]()
        k_format = stored_format(k_type, self._sample.k.shape[-1], "k", rotatable)
        v_format = stored_format(v_type, self._sample.v.shape[-1], "v", rotatable)
        key = (k_format, v_format, transformed and self._transform is not None)
        if key not in self._pairs:
            # A type that overflows gives infinities, which end as None; that is an answer, not a mishap.
            with np.errstate(over="ignore", invalid="ignore"):
                self._pairs[key] = self._measure(*key)
        return self._pairs[key]

    def _measure(self, k_format: Format, v_format: Format, transformed: bool) -> LayerErrors:
        keys = self._stored_keys(k_format, transformed)
        values = self._stored_values(v_format)
        return LayerErrors(
            k=keys.errors,
            v=values.errors,
            attn_logit_rmse=keys.logit_rmse,
            attn_kl=keys.kl,
            attn_output_rel_error=relative_error(self._output, attend(keys.probabilities, values.values)),
        )

    def _stored_keys(self, fmt: Format, transformed: bool) -> _StoredKeys:
        if (fmt, transformed) not in self._keys:
            exact = self._sample.k
            stored = self._kept_keys(exact, fmt, transformed)
            logits = attention_logits(self._sample.q, stored, self._sample.logit_scale)
            log_p = log_softmax(logits, self._visible)
            p = np.exp(log_p)
            output_error = relative_error(self._output, attend(p, self._sample.v))
            self._keys[fmt, transformed] = _StoredKeys(
                SideErrors(mse(exact, stored), nmse(exact, stored), output_error),
                logit_rmse(self._logits, logits, self._visible),
                kl_divergence(self._log_p, log_p),
                p,
            )
        return self._keys[fmt, transformed]

    def _kept_keys(self, exact: Float32Array, fmt: Format, transformed: bool) -> Float32Array:
        """What attention reads; with the transform undone, which is the same as changing the queries."""
        transform = self._transform if transformed else None
        if transform is None:
            return round_trip(exact, fmt)
        return np.asarray(transform.undo_k(round_trip(transform.apply_k(exact), fmt)), dtype=np.float32)

    def _stored_values(self, fmt: Format) -> _StoredValues:
        if fmt not in self._values:
            exact = self._sample.v
            stored = round_trip(exact, fmt)
            output_error = relative_error(self._output, attend(self._p, stored))
            self._values[fmt] = _StoredValues(
                SideErrors(mse(exact, stored), nmse(exact, stored), output_error), stored
            )
        return self._values[fmt]
