"""A transform held against the model it is used with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvquant.errors import TransformError
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import open_model
from kvquant.transform import KVTransform, LayerTransform, model_id, open_transform, write_transform

FILE = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"
MODEL = open_model(FILE)
SHAPE = shape_of(MODEL)
OWN = model_id(MODEL)


def sidecar(folder: Path, transform: KVTransform) -> Path:
    path = folder / "t.gguf"
    write_transform(transform, path)
    return path


def of_model(layer: int = 0, n_ctx: object = 512, **other: object) -> KVTransform:
    sizes = SHAPE.layers[0]
    layers = (LayerTransform(layer, np.ones((sizes.n_head_kv, sizes.head_dim_k))),)
    provenance = {} if n_ctx is None else {"n_ctx": n_ctx}
    return KVTransform(replace(OWN, **other), layers, provenance)  # type: ignore[arg-type]


def test_its_own_model_takes_it(tmp_path: Path) -> None:
    path = sidecar(tmp_path, of_model())
    used = open_transform(path, MODEL, SHAPE, digest=True).used
    assert (used.name, used.digest, used.n_ctx, used.n_layer) == ("t.gguf", of_model().digest, 512, 1)
    assert used.n_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"arch": "qwen2"}, "made for another model, qwen2 of"),
        ({"n_layer": SHAPE.n_layer + 1}, f"of {SHAPE.n_layer + 1} layers"),
        ({"weight_bytes": 7}, "and 7 bytes of weights"),
        ({"sha256": "cd" * 32}, "another file of this kind of model, SHA-256 cdcdcdcdcdcd"),
    ],
)
def test_another_model_does_not(tmp_path: Path, other: dict[str, object], message: str) -> None:
    path = sidecar(tmp_path, of_model(**other))
    with pytest.raises(TransformError, match=message) as caught:
        open_transform(path, MODEL, SHAPE, digest=True)
    assert "\n" not in str(caught.value)


def test_without_its_digest_the_content_is_not_read(tmp_path: Path) -> None:
    path = sidecar(tmp_path, of_model(sha256="cd" * 32))
    assert open_transform(path, MODEL, SHAPE).digest == of_model(sha256="cd" * 32).digest


def test_other_heads_are_refused(tmp_path: Path) -> None:
    wrong = KVTransform(OWN, (LayerTransform(0, np.ones((1, 6))),))
    with pytest.raises(TransformError, match=r"layer 0 is for 1 KV heads of 6 values, .*'s has"):
        open_transform(sidecar(tmp_path, wrong), MODEL, SHAPE)


def test_a_layer_without_a_cache_is_refused(tmp_path: Path) -> None:
    path = sidecar(tmp_path, of_model())
    bare = replace(SHAPE, layers=(replace(SHAPE.layers[0], keeps_cache=False), *SHAPE.layers[1:]))
    with pytest.raises(TransformError, match="keeps no keys"):
        open_transform(path, MODEL, bare)


@pytest.mark.parametrize(
    ("calibrated", "used", "words"),
    [(512, 512, None), (512, 513, "calibrated to 512 tokens and is used at 513"), (None, 1, "does not say")],
)
def test_depth_is_warned_of(tmp_path: Path, calibrated: int | None, used: int, words: str | None) -> None:
    warning = open_transform(sidecar(tmp_path, of_model(n_ctx=calibrated)), MODEL).depth_warning(used)
    assert warning is None if words is None else warning is not None and words in warning
