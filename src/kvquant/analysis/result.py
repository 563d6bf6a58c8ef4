"""The result of an analysis, whose fields are the keys of its JSON form (docs/analysis.md describes them).

Numbers that are not finite are None here and null in JSON. Squared errors and divergences are averaged over
layers as they are, square roots (attn_logit_rmse, attn_output_rel_error) as the root of the mean square.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from kvquant.analysis.metrics import decibel
from kvquant.analysis.sample import SourceInfo
from kvquant.documents import from_document, parse_json, to_json
from kvquant.errors import KVQuantError
from kvquant.memory.document import DefaultTypes
from kvquant.results.transform import TransformUsed

SCHEMA_VERSION = 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class SideErrors:
    """Error of one side (K or V) of a layer.

    mse: mean squared error of a value. nmse: squared error over energy, nmse_db in decibel; None when there
    is no error at all. attn_output_rel_error: relative error of the attention output when only this side is
    stored in its type.
    """

    mse: float | None
    nmse: float | None
    attn_output_rel_error: float | None
    nmse_db: float | None = field(init=False)

    def __post_init__(self) -> None:
        _derive(self, nmse_db=decibel(self.nmse))


@dataclass(frozen=True, kw_only=True)
class StoredSide(SideErrors):
    """The same, and how the side is stored: type, bits per value, bytes at the analysed context, rotation."""

    type: str
    bits_per_value: float
    bytes: int
    rotated: bool


@dataclass(frozen=True)
class LayerErrors:
    """Errors of one layer with both sides stored: logits, attention distribution (nats), attention output."""

    k: SideErrors
    v: SideErrors
    attn_logit_rmse: float | None
    attn_kl: float | None
    attn_output_rel_error: float | None


@dataclass(frozen=True, kw_only=True)
class LayerResult(LayerErrors):
    """One layer under the policy. ``unrotated``: errors without llama.cpp's rotation, if measured."""

    layer: int
    kv_index: int
    k: StoredSide
    v: StoredSide
    unrotated: LayerErrors | None

    @property
    def errors(self) -> LayerErrors:
        """The errors alone."""
        k, v = (_only(SideErrors, side) for side in (self.k, self.v))
        return LayerErrors(k, v, self.attn_logit_rmse, self.attn_kl, self.attn_output_rel_error)


@dataclass(frozen=True)
class MeanErrors:
    """Errors over all layers (module docstring: how they are averaged); None when a layer's is unknown."""

    k_mse: float | None
    k_nmse: float | None
    v_mse: float | None
    v_nmse: float | None
    attn_logit_rmse: float | None
    attn_kl: float | None
    attn_output_rel_error: float | None
    k_nmse_db: float | None = field(init=False)
    v_nmse_db: float | None = field(init=False)

    def __post_init__(self) -> None:
        _derive(self, k_nmse_db=decibel(self.k_nmse), v_nmse_db=decibel(self.v_nmse))

    @classmethod
    def over(cls, layers: Sequence[LayerErrors]) -> MeanErrors:
        """Average the errors of ``layers``."""
        return cls(
            k_mse=_mean(e.k.mse for e in layers),
            k_nmse=_mean(e.k.nmse for e in layers),
            v_mse=_mean(e.v.mse for e in layers),
            v_nmse=_mean(e.v.nmse for e in layers),
            attn_logit_rmse=_root_mean_square(e.attn_logit_rmse for e in layers),
            attn_kl=_mean(e.attn_kl for e in layers),
            attn_output_rel_error=_root_mean_square(e.attn_output_rel_error for e in layers),
        )


@dataclass(frozen=True, kw_only=True)
class Summary(MeanErrors):
    """A policy as one row: its bytes at the analysed context and its errors over all layers.

    runnable: whether llama.cpp has a cache type for everything in it. ratio_vs_f16: bytes over the bytes of
    an f16 cache for the same model and context. bits_per_value: mean per cached value, scales and norms
    included. layer_attn_output_rel_error, layer_bytes: of every cached layer, in layer order.
    """

    policy: str
    runnable: bool
    kv_bytes: int
    kv_bytes_f16: int
    unrotated: MeanErrors | None
    layer_attn_output_rel_error: tuple[float | None, ...]
    layer_bytes: tuple[int, ...]
    ratio_vs_f16: float = field(init=False)
    bits_per_value: float = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = self.kv_bytes / self.kv_bytes_f16
        _derive(self, ratio_vs_f16=ratio, bits_per_value=16 * ratio)

    @property
    def errors(self) -> MeanErrors:
        """The errors alone."""
        return _only(MeanErrors, self)


@dataclass(frozen=True)
class Analysis:
    """What a policy costs and saves on one model and one set of K/V, beside other policies on the same data.

    policy: canonical text. default: types of the layers no rule names. model: the shape's name. n_ctx:
    context for all byte counts, as llama.cpp rounds it. rotation: "on" (as llama.cpp), "off", or "both"
    (errors as llama.cpp, and ``unrotated`` filled). baselines: name to summary. verdict: for people.
    transform: what K goes through under the policy, null for none.
    """

    policy: str
    default: DefaultTypes
    model: str
    n_ctx: int
    rotation: str
    source: SourceInfo
    layers: tuple[LayerResult, ...]
    total: Summary
    baselines: Mapping[str, Summary]
    verdict: str
    warnings: tuple[str, ...]
    transform: TransformUsed | None = None
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the analysis as one JSON document, keys as documented in docs/analysis.md."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Analysis:
        """Read what ``to_json`` wrote. Raises KVQuantError when it is something else."""
        where = "the analysis"
        document = parse_json(text, where)
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise KVQuantError(
                f"analysis has schema_version {version!r}, this version reads {SCHEMA_VERSION}; write one "
                "with analyze --json"
            )
        return from_document(cls, document, where)


def _derive(value: object, **derived: float | None) -> None:
    """Set the fields of a frozen value that follow from its others."""
    for name, number in derived.items():
        object.__setattr__(value, name, number)


def _only(kind: type[_T], value: Any) -> _T:
    """Return the part of ``value`` that a class above its own describes."""
    return kind(**{entry.name: getattr(value, entry.name) for entry in fields(kind) if entry.init})  # type: ignore[arg-type]


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known or not known else math.fsum(v for v in known if v is not None) / len(known)


def _root_mean_square(values: Iterable[float | None]) -> float | None:
    mean = _mean(None if value is None else value * value for value in values)
    return None if mean is None else math.sqrt(mean)
