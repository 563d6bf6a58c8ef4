"""The capture file: what is written is read back, and nothing but a whole, consistent file is read."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvquant.errors import CaptureError, KVQuantError
from kvquant.model.capture import KVCapture, LayerAxes, LayerCapture, load_capture, save_capture

AXES = LayerAxes(3, n_head=4, n_head_kv=2, head_dim_k=8, head_dim_v=6, logit_scale=0.25, window=16)


def make_capture(dtype: type = np.float32, with_queries: bool = True) -> KVCapture:
    rng = np.random.default_rng(1)
    n_tokens, n_query = 5, 3
    layers = tuple(
        LayerCapture(
            LayerAxes(layer, 4, 2, 8, 6, 0.25, window),
            k=rng.standard_normal((n_tokens, 2, 8)).astype(dtype),
            v=rng.standard_normal((n_tokens, 2, 6)).astype(dtype),
            q=rng.standard_normal((n_query, 4, 8)).astype(dtype) if with_queries else None,
        )
        for layer, window in ((3, 0), (7, 16))
    )
    return KVCapture(
        model="tiny",
        arch="qwen35",
        n_layer=8,
        source="a test",
        positions=np.arange(n_tokens, dtype=np.int32),
        layers=layers,
        queries="captured" if with_queries else "none",
        q_positions=np.array([1, 2, 4], dtype=np.int32) if with_queries else None,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("with_queries", [True, False])
def test_what_is_saved_is_loaded(tmp_path: Path, dtype: type, with_queries: bool) -> None:
    capture = make_capture(dtype, with_queries)
    path = tmp_path / "kv.npz"
    save_capture(capture, path)
    again = load_capture(path)
    assert (again.model, again.arch, again.n_layer, again.source) == ("tiny", "qwen35", 8, "a test")
    assert again.queries == capture.queries
    np.testing.assert_array_equal(again.positions, capture.positions)
    assert (again.q_positions is None) is not with_queries
    for old, new in zip(capture.layers, again.layers, strict=True):
        assert old.axes == new.axes
        for side in ("k", "v", "q"):
            left, right = getattr(old, side), getattr(new, side)
            if left is None:
                assert right is None
                continue
            assert right.dtype == dtype
            np.testing.assert_array_equal(left, right)
            with pytest.raises(ValueError, match="read-only"):
                right[0] = 0


def test_a_capture_needs_a_token() -> None:
    with pytest.raises(CaptureError, match="empty"):
        replace(make_capture(), positions=np.zeros(0, np.int32))


def test_a_window_layer_may_hold_the_last_tokens_only(tmp_path: Path) -> None:
    capture = make_capture()
    full, windowed = capture.layers
    shorter = replace(windowed, k=windowed.k[2:], v=windowed.v[2:])
    save_capture(replace(capture, layers=(full, shorter)), tmp_path / "kv.npz")
    again = load_capture(tmp_path / "kv.npz")
    assert again.positions_of(again.layers[0]).tolist() == [0, 1, 2, 3, 4]
    assert again.positions_of(again.layers[1]).tolist() == [2, 3, 4]
    with pytest.raises(CaptureError, match=r"k\.3 holds 3 tokens, positions has 5"):
        replace(capture, layers=(replace(full, k=full.k[2:], v=full.v[2:]), windowed))
    with pytest.raises(CaptureError, match=r"v\.7 has axes"):
        replace(capture, layers=(full, replace(windowed, k=windowed.k[2:])))
    with pytest.raises(CaptureError, match=r"k\.3 holds 0 tokens"):
        replace(capture, layers=(replace(full, k=np.float32(1)), windowed))


def test_the_callers_arrays_stay_writable() -> None:
    k, v = np.zeros((1, 2, 8), np.float32), np.zeros((1, 2, 6), np.float32)
    LayerCapture(AXES, k, v)
    k[0] = 1


def test_the_same_capture_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_capture(make_capture(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": -1}, "positive"),
        ({"n_head": 0}, "positive"),
        ({"n_head_kv": 3}, "share"),
        ({"window": -1}, "positive"),
        ({"logit_scale": 0.0}, "logit scale"),
        ({"logit_scale": float("nan")}, "logit scale"),
    ],
)
def test_axes_that_cannot_be(change: dict[str, Any], message: str) -> None:
    fields = {"layer": 0, "n_head": 4, "n_head_kv": 2, "head_dim_k": 8, "head_dim_v": 8, "logit_scale": 1.0}
    with pytest.raises(CaptureError, match=message):
        LayerAxes(**{**fields, **change})


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _write(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _meta(path: Path, **change: Any) -> bytes:
    meta = json.loads(np.load(path)["meta"].tobytes())
    return _npy(np.frombuffer(json.dumps({**meta, **change}).encode(), np.uint8))


BROKEN_ARRAYS = [
    ("k.3.npy", np.zeros((5, 2, 9), np.float32), r"k\.3 has axes \(5, 2, 9\), expected \(n, 2, 8\)"),
    ("k.3.npy", np.zeros((5, 16), np.float32), r"k\.3 has axes"),
    ("v.7.npy", np.zeros((5, 2, 6), np.float64), r"v\.7 is float64"),
    ("v.7.npy", np.zeros((5, 2, 6), ">f4"), r"v\.7 is >f4"),
    ("v.7.npy", np.full((5, 2, 6), np.nan, np.float32), r"v\.7 holds a NaN"),
    ("q.7.npy", np.asfortranarray(np.zeros((3, 4, 8), np.float32)), "column by column"),
    ("positions.npy", np.arange(5, dtype=np.int64), "positions is int64"),
    ("positions.npy", np.array([0, 1, 1, 2, 3], np.int32), "not ascending"),
    ("positions.npy", np.array([-1, 0, 1, 2, 3], np.int32), "not ascending"),
    ("positions.npy", np.zeros((0,), np.int32), "positions is empty"),
    ("positions.npy", np.arange(6, dtype=np.int32), r"k\.3 holds 5 tokens, positions has 6"),
    ("q_positions.npy", np.zeros((1, 3), np.int32), "q_positions has axes"),
    ("more.npy", np.zeros(1, np.float32), "unknown arrays more.npy"),
]


@pytest.mark.parametrize(("name", "array", "message"), BROKEN_ARRAYS)
def test_wrong_arrays_are_named(tmp_path: Path, name: str, array: np.ndarray[Any, Any], message: str) -> None:
    path = tmp_path / "kv.npz"
    save_capture(make_capture(), path)
    _write(path, {**_members(path), name: _npy(array)})
    with pytest.raises(CaptureError, match=message):
        load_capture(path)


BROKEN_META: list[tuple[dict[str, Any], str]] = [
    ({"schema_version": 2}, "schema version 2"),
    ({"schema_version": None}, "schema version None"),
    ({"n_layer": 7}, "below 7"),
    ({"n_layer": "8"}, "needs n_layer"),
    ({"n_layer": True}, "needs n_layer"),
    ({"queries": "made up"}, "queries"),
    ({"queries": "none"}, "unknown arrays"),
    ({"model": None}, "needs model"),
    ({"layers": []}, "unknown arrays"),
    ({"layers": [3]}, "not a JSON object"),
    ({"layers": [{"layer": 3}]}, "needs n_head"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN_META)
def test_wrong_meta_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "kv.npz"
    save_capture(make_capture(), path)
    _write(path, {**_members(path), "meta.npy": _meta(path, **change)})
    with pytest.raises(CaptureError, match=message):
        load_capture(path)


@pytest.mark.parametrize(
    "name", ["meta.npy", "positions.npy", "q_positions.npy", "k.3.npy", "v.7.npy", "q.3.npy"]
)
def test_missing_arrays_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "kv.npz"
    save_capture(make_capture(), path)
    members = _members(path)
    del members[name]
    _write(path, members)
    with pytest.raises(CaptureError, match=f"{name.removesuffix('.npy')} is missing"):
        load_capture(path)


def test_a_size_that_is_not_there_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "kv.npz"
    save_capture(make_capture(), path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**20, 8)}
    )
    _write(path, {**_members(path), "k.3.npy": header.getvalue() + b"\0" * 64})
    with pytest.raises(CaptureError, match=r"claims .* bytes that are not there"):
        load_capture(path)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "kv.npz"
    save_capture(make_capture(), path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
    _write(path, {**_members(path), "k.3.npy": buffer.getvalue()})
    with pytest.raises(CaptureError):
        load_capture(path)


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x03\x04", b"\x93NUMPY", b"GGUF" * 100])
def test_other_files_are_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "kv.npz"
    path.write_bytes(data)
    with pytest.raises(CaptureError) as raised:
        load_capture(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no such file"):
        load_capture(tmp_path / "none.npz")
    with pytest.raises(CaptureError, match="cannot be read"):
        load_capture(tmp_path)
    with pytest.raises(KVQuantError, match="cannot write"):
        save_capture(make_capture(), tmp_path / "none" / "kv.npz")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_files_give_capture_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "kv.npz"
    save_capture(make_capture(), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path.write_bytes(bytes(content[:cut]))
    try:
        load_capture(path)
    except CaptureError as error:
        assert "\n" not in str(error)
