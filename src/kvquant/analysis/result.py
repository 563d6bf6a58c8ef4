"""The result of an analysis, and its one JSON form (docs/analysis.md describes every key).

Numbers that are not finite are None here and null in JSON. Squared errors and divergences are averaged over
layers as they are, square roots (attn_logit_rmse, attn_output_rel_error) as the root of the mean square.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from kvquant.analysis.metrics import decibel
from kvquant.analysis.sample import SourceInfo
from kvquant.errors import KVQuantError

SCHEMA_VERSION = 1

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True)
class SideErrors:
    """Error of one side (K or V) of a layer.

    mse: mean squared error of a value. nmse: squared error over energy.
    attn_output_rel_error: relative error of the attention output when only this side is stored in its type.
    """

    mse: float | None
    nmse: float | None
    attn_output_rel_error: float | None

    @property
    def nmse_db(self) -> float | None:
        """``nmse`` in decibel; None when there is no error at all."""
        return decibel(self.nmse)


@dataclass(frozen=True)
class LayerErrors:
    """Errors of one layer with both sides stored: logits, attention distribution (nats), attention output."""

    k: SideErrors
    v: SideErrors
    attn_logit_rmse: float | None
    attn_kl: float | None
    attn_output_rel_error: float | None


@dataclass(frozen=True)
class SideStorage:
    """How one side of a layer is stored: type, bits per value, bytes at the analysed context, rotation."""

    type: str
    bits_per_value: float
    n_bytes: int
    rotated: bool


@dataclass(frozen=True)
class LayerResult:
    """One layer under the policy. ``unrotated``: errors without llama.cpp's rotation, if measured."""

    layer: int
    kv_index: int
    k: SideStorage
    v: SideStorage
    errors: LayerErrors
    unrotated: LayerErrors | None


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


@dataclass(frozen=True)
class Summary:
    """A policy as one row: its bytes at the analysed context and its errors over all layers.

    runnable: whether llama.cpp has a cache type for everything in it.
    layer_errors, layer_bytes: attn_output_rel_error and bytes of every cached layer, in layer order.
    """

    policy: str
    runnable: bool
    kv_bytes: int
    kv_bytes_f16: int
    errors: MeanErrors
    unrotated: MeanErrors | None
    layer_errors: tuple[float | None, ...]
    layer_bytes: tuple[int, ...]

    @property
    def ratio_vs_f16(self) -> float:
        """Bytes over the bytes of an f16 cache for the same model and context."""
        return self.kv_bytes / self.kv_bytes_f16

    @property
    def bits_per_value(self) -> float:
        """Mean bits per cached value, scales and norms included."""
        return 16 * self.ratio_vs_f16


@dataclass(frozen=True)
class Analysis:
    """What a policy costs and saves on one model and one set of K/V, beside other policies on the same data.

    policy: canonical text. default_k, default_v: types of the layers no rule names. model: the shape's name.
    n_ctx: context for all byte counts, as llama.cpp rounds it. rotation: "on" (as llama.cpp), "off", or
    "both" (errors as llama.cpp, and ``unrotated`` filled). baselines: name to summary. verdict: for people.
    """

    policy: str
    default_k: str
    default_v: str
    model: str
    n_ctx: int
    rotation: str
    source: SourceInfo
    layers: tuple[LayerResult, ...]
    total: Summary
    baselines: Mapping[str, Summary]
    verdict: str
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """Return the analysis as one JSON document, keys as documented in docs/analysis.md."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "policy": self.policy,
            "default": {"k": self.default_k, "v": self.default_v},
            "model": self.model,
            "n_ctx": self.n_ctx,
            "rotation": self.rotation,
            "source": asdict(self.source),
            "layers": [_layer_document(layer) for layer in self.layers],
            "total": _summary_document(self.total),
            "baselines": {name: _summary_document(summary) for name, summary in self.baselines.items()},
            "verdict": self.verdict,
            "warnings": list(self.warnings),
        }
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Analysis:
        """Read what ``to_json`` wrote. Raises KVQuantError when it is something else."""
        try:
            document = json.loads(text)
            if document["schema_version"] != SCHEMA_VERSION:
                raise KVQuantError(
                    f"analysis has schema_version {document['schema_version']!r}, this version reads "
                    f"{SCHEMA_VERSION}; run the analysis again"
                )
            return cls(
                policy=document["policy"],
                default_k=document["default"]["k"],
                default_v=document["default"]["v"],
                model=document["model"],
                n_ctx=document["n_ctx"],
                rotation=document["rotation"],
                source=SourceInfo(**document["source"]),
                layers=tuple(map(_layer_from, document["layers"])),
                total=_summary_from(document["total"]),
                baselines={name: _summary_from(entry) for name, entry in document["baselines"].items()},
                verdict=document["verdict"],
                warnings=tuple(document["warnings"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KVQuantError(
                f"not an analysis document ({error!r}); write one with analyze --json"
            ) from error


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known or not known else math.fsum(v for v in known if v is not None) / len(known)


def _root_mean_square(values: Iterable[float | None]) -> float | None:
    mean = _mean(None if value is None else value * value for value in values)
    return None if mean is None else math.sqrt(mean)


def _layer_document(layer: LayerResult) -> dict[str, Any]:
    errors = layer.errors
    return {
        "layer": layer.layer,
        "kv_index": layer.kv_index,
        "k": _storage_document(layer.k) | _side_document(errors.k),
        "v": _storage_document(layer.v) | _side_document(errors.v),
        **_attention_document(errors),
        "unrotated": _optional(_errors_document, layer.unrotated),
    }


def _storage_document(storage: SideStorage) -> dict[str, Any]:
    return {
        "type": storage.type,
        "bits_per_value": storage.bits_per_value,
        "bytes": storage.n_bytes,
        "rotated": storage.rotated,
    }


def _side_document(side: SideErrors) -> dict[str, Any]:
    return {
        "mse": side.mse,
        "nmse": side.nmse,
        "nmse_db": side.nmse_db,
        "attn_output_rel_error": side.attn_output_rel_error,
    }


def _attention_document(errors: LayerErrors) -> dict[str, Any]:
    return {
        "attn_logit_rmse": errors.attn_logit_rmse,
        "attn_kl": errors.attn_kl,
        "attn_output_rel_error": errors.attn_output_rel_error,
    }


def _errors_document(errors: LayerErrors) -> dict[str, Any]:
    return {"k": _side_document(errors.k), "v": _side_document(errors.v), **_attention_document(errors)}


def _summary_document(summary: Summary) -> dict[str, Any]:
    return {
        "policy": summary.policy,
        "runnable": summary.runnable,
        "kv_bytes": summary.kv_bytes,
        "kv_bytes_f16": summary.kv_bytes_f16,
        "ratio_vs_f16": summary.ratio_vs_f16,
        "bits_per_value": summary.bits_per_value,
        **_mean_document(summary.errors),
        "unrotated": _optional(_mean_document, summary.unrotated),
        "layer_attn_output_rel_error": list(summary.layer_errors),
        "layer_bytes": list(summary.layer_bytes),
    }


def _mean_document(errors: MeanErrors) -> dict[str, Any]:
    return asdict(errors) | {"k_nmse_db": decibel(errors.k_nmse), "v_nmse_db": decibel(errors.v_nmse)}


def _optional(convert: Callable[[_T], _U], value: _T | None) -> _U | None:
    return None if value is None else convert(value)


def _layer_from(entry: Mapping[str, Any]) -> LayerResult:
    return LayerResult(
        layer=entry["layer"],
        kv_index=entry["kv_index"],
        k=_storage_from(entry["k"]),
        v=_storage_from(entry["v"]),
        errors=_errors_from(entry),
        unrotated=_optional(_errors_from, entry["unrotated"]),
    )


def _storage_from(entry: Mapping[str, Any]) -> SideStorage:
    return SideStorage(entry["type"], entry["bits_per_value"], entry["bytes"], entry["rotated"])


def _side_from(entry: Mapping[str, Any]) -> SideErrors:
    return SideErrors(entry["mse"], entry["nmse"], entry["attn_output_rel_error"])


def _errors_from(entry: Mapping[str, Any]) -> LayerErrors:
    return LayerErrors(
        k=_side_from(entry["k"]),
        v=_side_from(entry["v"]),
        attn_logit_rmse=entry["attn_logit_rmse"],
        attn_kl=entry["attn_kl"],
        attn_output_rel_error=entry["attn_output_rel_error"],
    )


def _summary_from(entry: Mapping[str, Any]) -> Summary:
    return Summary(
        policy=entry["policy"],
        runnable=entry["runnable"],
        kv_bytes=entry["kv_bytes"],
        kv_bytes_f16=entry["kv_bytes_f16"],
        errors=_mean_from(entry),
        unrotated=_optional(_mean_from, entry["unrotated"]),
        layer_errors=tuple(entry["layer_attn_output_rel_error"]),
        layer_bytes=tuple(entry["layer_bytes"]),
    )


def _mean_from(entry: Mapping[str, Any]) -> MeanErrors:
    return MeanErrors(**{name: entry[name] for name in MeanErrors.__dataclass_fields__})
