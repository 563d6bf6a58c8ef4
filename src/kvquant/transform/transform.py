"""The transform itself: per layer and KV head a centre c and an invertible M, as they are stored and applied.

    stored:  quantize(M (k − c))          query:  q' = M⁻ᵀ q
    q'ᵀ M (k − c) = qᵀk − qᵀc             qᵀc is the same for every key of a query: the softmax does not see
    it

llama.cpp's Hadamard rotation follows as before, on both sides, and is no part of this.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from kvquant.errors import TransformError

Kind = Literal["centre", "diagonal", "balanced"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Float32Array = npt.NDArray[np.float32]

MAX_CONDITION = 1.0e4
"""Largest ratio of the singular values of M. Queries are rounded to 16 bits before some products and to 8
bits before others, relative to their largest value; a larger ratio would lose small channels there."""


@dataclass(frozen=True)
class LayerTransform:
    """The transform of one layer.

    centre: float32 (n_head_kv, head_dim). forward: M, float32; (n_head_kv, head_dim) holds diagonals,
    (n_head_kv, head_dim, head_dim) full matrices, None stands for the identity. query: M⁻ᵀ, of the same
    shape; computed in float64 from ``forward`` and rounded once. gain_db: how much less squared logit error
    the fit expects than from no transform, in dB; None when unknown.

    Raises TransformError when shapes do not fit, a number is not finite, or M is singular or worse
    conditioned than `MAX_CONDITION`.
    """

    layer: int
    centre: Float32Array
    forward: Float32Array | None = None
    gain_db: float | None = None
    query: Float32Array | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre", _frozen(self.centre))
        if self.forward is not None:
            object.__setattr__(self, "forward", _frozen(self.forward))
        self._check()
        object.__setattr__(self, "query", self._query())

    @property
    def kind(self) -> Kind:
        """Which family the transform is of; a centre of zeros counts as one."""
        return "centre" if self.forward is None else "diagonal" if self.forward.ndim == 2 else "balanced"

    @property
    def n_head_kv(self) -> int:
        """KV heads of the layer."""
        return len(self.centre)

    @property
    def head_dim(self) -> int:
        """Values of one key."""
        return int(self.centre.shape[1])

    def of_heads(self, heads: Sequence[int]) -> LayerTransform:
        """Return the transform of some of the KV heads, in this order."""
        chosen = list(heads)
        forward = None if self.forward is None else self.forward[chosen]
        return LayerTransform(self.layer, self.centre[chosen], forward, self.gain_db)

    def apply_k(self, k: Any) -> Any:
        """Return M (k − c) for k (..., n_head_kv, head_dim): what is quantized. NumPy or Torch as given."""
        self._check_heads(k, self.n_head_kv)
        return _times(self.forward, k - _like(k, self.centre))

    def undo_k(self, stored: Any) -> Any:
        """Return M⁻¹ x + c for x (..., n_head_kv, head_dim): keys again, from what was stored."""
        self._check_heads(stored, self.n_head_kv)
        inverse = self.query if self.query is None or self.query.ndim == 2 else self.query.transpose(0, 2, 1)
        return _times(inverse, stored) + _like(stored, self.centre)

    def apply_q(self, q: Any) -> Any:
        """Return M⁻ᵀ q for q (..., n_head, head_dim); query head h reads KV head h // (n_head/n_head_kv)."""
        n_head = q.shape[-2]
        self._check_heads(q, n_head - n_head % self.n_head_kv or self.n_head_kv)
        grouped = q.reshape(*q.shape[:-2], self.n_head_kv, n_head // self.n_head_kv, q.shape[-1])
        return _times(self.query, grouped, group=True).reshape(q.shape)

    def _check(self) -> None:
        if self.centre.ndim != 2 or not self.centre.size:
            raise TransformError(
                f"transform of layer {self.layer}: a centre of shape {self.centre.shape}, not (KV heads, "
                f"head dim)"
            )
        shape = self.centre.shape
        if self.forward is not None and self.forward.shape not in {shape, (*shape, shape[1])}:
            raise TransformError(
                f"transform of layer {self.layer}: a matrix of shape {self.forward.shape} beside a centre "
                f"of {shape}"
            )
        for name, array in (("centre", self.centre), ("matrix", self.forward)):
            if array is not None and not np.isfinite(array).all():
                raise TransformError(f"transform of layer {self.layer}: the {name} holds NaN or infinity")
        if self.forward is not None and not condition(self.forward) <= MAX_CONDITION * 1.01:
            raise TransformError(
                f"transform of layer {self.layer}: its matrix has condition number "
                f"{condition(self.forward):.3g}; "
                f"at most {MAX_CONDITION:g} keeps 16-bit queries exact enough; calibrate again"
            )

    def _query(self) -> Float32Array | None:
        if self.forward is None:
            return None
        exact = self.forward.astype(np.float64)
        inverse = 1 / exact if exact.ndim == 2 else np.linalg.inv(exact).transpose(0, 2, 1)
        return _frozen(inverse)

    def _check_heads(self, x: Any, n_head: int) -> None:
        if x.ndim < 2 or tuple(x.shape[-2:]) != (n_head, self.head_dim):
            raise TransformError(
                f"transform of layer {self.layer}: values of shape {tuple(x.shape)}; the layer has "
                f"{self.n_head_kv} KV heads of {self.head_dim} values"
            )


@dataclass(frozen=True)
class ModelId:
    """The model a transform was fitted on. sha256: of its file or files. weight_bytes: of all its tensors.

    A running llama.cpp knows neither file nor digest; architecture, layers and bytes are what it can check.
    """

    sha256: str
    arch: str
    n_layer: int
    weight_bytes: int


@dataclass(frozen=True)
class KVTransform:
    """The transform of a model: the layers it changes, ascending; those not named stay as they are.

    provenance: text, kinds, context and versions, as one flat table of texts and numbers.
    """

    model: ModelId
    layers: tuple[LayerTransform, ...]
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [layer.layer for layer in self.layers]
        last = self.model.n_layer - 1
        if sorted(set(numbers)) != numbers or (numbers and not 0 <= numbers[0] <= numbers[-1] <= last):
            raise TransformError(f"transform: layers {numbers} are not ascending numbers of 0 to {last}")
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what changes numbers: model, layers, centres and matrices; not of provenance."""
        hashed = hashlib.sha256(f"kvquant transform 1 {self.model.sha256} {self.model.n_layer}".encode())
        for layer in self.layers:
            arrays = [array for array in (layer.centre, layer.forward) if array is not None]
            hashed.update(f" {layer.layer} {[array.shape for array in arrays]}".encode())
            for array in arrays:
                hashed.update(array.astype("<f4").tobytes())
        return hashed.hexdigest()

    @property
    def n_ctx(self) -> int | None:
        """The deepest position it was fitted and measured at, in tokens; None where nothing says so."""
        found = self.provenance.get("n_ctx")
        return found if isinstance(found, int) and found > 0 else None

    def of(self, layer: int) -> LayerTransform | None:
        """Return the transform of a layer, None for one that stays as it is."""
        return next((this for this in self.layers if this.layer == layer), None)


def condition(matrix: npt.NDArray[Any]) -> float:
    """Return the largest ratio of singular values over the heads of M; infinity for a singular one.

    matrix: (n_head_kv, head_dim) diagonals or (n_head_kv, head_dim, head_dim).
    """
    exact = np.asarray(matrix, dtype=np.float64)
    values = np.abs(exact) if exact.ndim == 2 else np.linalg.svd(exact, compute_uv=False)
    low, high = values.min(axis=-1), values.max(axis=-1)
    return math.inf if not low.all() else float((high / low).max())


def _times(matrix: Float32Array | None, x: Any, *, group: bool = False) -> Any:
    """Return the matrix of each KV head times the vectors of x (..., n_head_kv[, group], head_dim)."""
    if matrix is None:
        return x
    factor = _like(x, matrix[:, None] if group else matrix)
    if matrix.ndim == 2:
        return x * factor
    return (factor @ x[..., None])[..., 0]


def _like(x: Any, array: Float32Array) -> Any:
    """Return ``array`` in the library, and on the device, of ``x``; in its dtype, at least float32."""
    if isinstance(x, np.ndarray):
        return array.astype(np.result_type(x.dtype, np.float32))
    import torch  # only here: the caller holds a tensor already

    return torch.tensor(array, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


def _frozen(array: npt.NDArray[Any]) -> Float32Array:
    copy = np.array(array, dtype=np.float32, order="C")
    copy.setflags(write=False)
    return copy
