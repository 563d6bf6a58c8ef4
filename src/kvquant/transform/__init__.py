"""Exact changes of K and Q that leave attention as it is and make quantizing K cheaper
(docs/transform.md).
"""

from kvquant.transform.fit import FitOptions, fit_head, fit_layer, predicted_error
from kvquant.transform.for_model import (
    TransformFile,
    cache_key,
    check_layers,
    loaded_bytes,
    model_id,
    open_transform,
    transform_file,
)
from kvquant.transform.moments import HeadMoments, LayerMoments, measure
from kvquant.transform.sidecar import read_transform, write_transform
from kvquant.transform.transform import KINDS, Kind, KVTransform, LayerTransform, ModelId

__all__ = [
    "KINDS",
    "FitOptions",
    "HeadMoments",
    "KVTransform",
    "Kind",
    "LayerMoments",
    "LayerTransform",
    "ModelId",
    "TransformFile",
    "cache_key",
    "check_layers",
    "fit_head",
    "fit_layer",
    "loaded_bytes",
    "measure",
    "model_id",
    "open_transform",
    "predicted_error",
    "read_transform",
    "transform_file",
    "write_transform",
]
