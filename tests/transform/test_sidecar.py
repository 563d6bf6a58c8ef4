"""The file of a transform: what is written is read back, what is damaged is one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import KVQuantError, TransformError
from kvquant.transform import (
    KINDS,
    Kind,
    KVTransform,
    LayerTransform,
    ModelId,
    fit_layer,
    measure,
    read_transform,
    write_transform,
)
from transform.strategies import Sample, samples

MODEL = ModelId("ab" * 32, "llama", 4, 1234)


def example(kind: Kind = "balanced") -> KVTransform:
    rng = np.random.default_rng(5)
    layers = tuple(
        fit_layer(measure(i, rng.standard_normal((30, 2, 8)) + i, rng.standard_normal((9, 4, 8))), kind)
        for i in (0, 2)
    )
    return KVTransform(MODEL, layers, {"text": "prose", "n_ctx": 512, "floor": 1e-4})


@given(samples(widths=(1, 8)), st.sampled_from(KINDS))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, sample: Sample, kind: Kind
) -> None:
    path = tmp_path_factory.getbasetemp() / "a.gguf"
    layer = fit_layer(measure(1, sample.k, sample.q), kind)
    transform = KVTransform(MODEL, (layer,), {"text": "π"})
    write_transform(transform, path)
    again = read_transform(path)
    assert again.digest == transform.digest
    assert (again.model, again.provenance) == (MODEL, {"text": "π"})
    (read,) = again.layers
    assert (read.kind, read.layer) == (kind, 1)
    np.testing.assert_array_equal(read.centre, layer.centre)
    np.testing.assert_array_equal(read.query, layer.query) if layer.query is not None else None
    assert read.gain_db == pytest.approx(layer.gain_db, rel=1e-6, abs=1e-30)


def test_digest_sees_what_changes_numbers_and_nothing_else() -> None:
    transform = example()
    same = KVTransform(MODEL, transform.layers, {"text": "other"})
    assert same.digest == transform.digest
    first = transform.layers[0]
    moved = LayerTransform(0, first.centre + np.float32(0.5), first.forward)
    for other in (
        KVTransform(replace(MODEL, sha256="cd" * 32), transform.layers),
        KVTransform(replace(MODEL, n_layer=5), transform.layers),
        KVTransform(MODEL, transform.layers[:1]),
        KVTransform(MODEL, (moved, transform.layers[1])),
    ):
        assert other.digest != transform.digest


@pytest.mark.parametrize("size", [0, 3, 24, 100, 400, -300])
def test_a_cut_file_is_one_line(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.gguf"
    write_transform(example(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(TransformError) as caught:
        read_transform(path)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 1600), st.integers(0, 255))
def test_a_changed_byte_is_noticed_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "b.gguf"
    write_transform(example("diagonal"), path)
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at] = value
    path.write_bytes(data)
    try:
        assert read_transform(path).digest == example("diagonal").digest
    except TransformError as error:
        assert "\n" not in str(error)


def test_what_is_no_transform_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = GGUFWriter(str(path), "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(TransformError, match="holds 'llama', not a K transform"):
        read_transform(path)
    with pytest.raises(TransformError, match="No such file"):
        read_transform(tmp_path / "none.gguf")
    with pytest.raises(TransformError, match="is not a transform file"):
        read_transform(tmp_path)


def test_numbers_that_are_no_float16_are_refused(tmp_path: Path) -> None:
    layer = LayerTransform(0, np.full((1, 2), 1 / 3))
    with pytest.raises(TransformError, match="float16"):
        write_transform(KVTransform(MODEL, (layer,)), tmp_path / "a.gguf")
    with pytest.raises(KVQuantError, match="cannot write"):
        write_transform(example(), tmp_path / "none" / "a.gguf")
