"""The header reader: what it reads, what it refuses and how, and that no bytes can hurt it."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import ModelFileError, ShapeError
from kvquant.model.architectures import read_shape
from kvquant.model.gguf_header import (
    KEPT_ITEMS,
    MAX_KEYS,
    MAX_STRINGS,
    MAX_TENSORS,
    Array,
    Scalar,
    read_header,
)
from kvquant.model.gguf_types import ValueType
from kvquant.model.shape_json import shape_from_json, shape_to_json
from model.gguf_bytes import (
    LLAMA_KEYS,
    GgufFile,
    Tensor,
    Typed,
    array,
    int_array,
    llama_keys,
    number,
    string,
    string_array,
    value,
)
from write_random_gguf import ARCHITECTURES, RandomModel, write_random_gguf

HUGE = 2**64 - 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def write(path: Path, file: GgufFile | bytes) -> Path:
    path.write_bytes(file if isinstance(file, bytes) else file.encoded())
    return path


def test_reads_every_value_type(path: Path) -> None:
    keys: dict[str, Any] = {
        "u8": number(ValueType.UINT8, 200),
        "i16": number(ValueType.INT16, -2),
        "u64": number(ValueType.UINT64, HUGE),
        "f64": number(ValueType.FLOAT64, 0.1),
        "nan": float("nan"),
        "bool": True,
        "text": "é",
        "strings": string_array(["a", "", "ccc"]),
        "bools": int_array([1, 0], ValueType.BOOL),
        "ints": int_array([-1, 2]),
        "many": int_array([7] * (KEPT_ITEMS + 1)),
        "after": 5,
    }
    header = read_header(write(path, GgufFile(keys, [Tensor("t", (32, 2), 8, 0)], bytes(68))))
    assert header.version == 3
    assert header.values["u8"] == Scalar(ValueType.UINT8, 200)
    assert header.values["i16"] == Scalar(ValueType.INT16, -2)
    assert header.values["u64"] == Scalar(ValueType.UINT64, HUGE)
    assert header.values["f64"] == Scalar(ValueType.FLOAT64, 0.1)
    assert header.values["bool"] == Scalar(ValueType.BOOL, True)
    assert header.values["text"] == Scalar(ValueType.STRING, "é")
    assert header.values["strings"] == Array(ValueType.STRING, 3, None)
    assert header.values["bools"] == Array(ValueType.BOOL, 2, (True, False))
    assert header.values["ints"] == Array(ValueType.INT32, 2, (-1, 2))
    assert header.values["many"] == Array(ValueType.INT32, KEPT_ITEMS + 1, None)
    assert header.values["after"] == Scalar(ValueType.UINT32, 5)
    (tensor,) = header.tensors
    assert (tensor.name, tensor.ne, tensor.type_name, tensor.n_bytes) == ("t", (32, 2), "q8_0", 68)
    assert tensor.offset + tensor.n_bytes == path.stat().st_size


@pytest.mark.parametrize("arch", ["llama", "gemma4", "qwen35moe", "lfm2"])
def test_agrees_with_gguf_py(arch: str, path: Path) -> None:
    """Every scalar and every tensor's place as the reference reader has them."""
    write_random_gguf(
        path, RandomModel(arch=arch, n_head=2, n_head_kv=1, head_dim=16, n_ff=16, n_shared_kv=0)
    )
    header, reference = read_header(path), gguf.GGUFReader(path)
    assert [(t.name, t.ne, t.offset, t.n_bytes) for t in header.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), t.data_offset, t.n_bytes) for t in reference.tensors
    ]
    fields = {name: entry for name, entry in reference.fields.items() if not name.startswith("GGUF.")}
    assert header.values.keys() == fields.keys()
    for name, entry in header.values.items():
        kind = [ValueType.ARRAY, entry.type] if isinstance(entry, Array) else [entry.type]
        assert [int(t) for t in fields[name].types] == kind
        contents = fields[name].contents()
        if isinstance(entry, Scalar):
            assert entry.value == contents
        else:
            assert entry.n == len(contents)
            assert entry.items is None or list(entry.items) == contents


def test_version_2_and_long_strings(path: Path) -> None:
    keys = {**LLAMA_KEYS, "tokenizer.chat_template": "x" * 100_000, "last": 1}
    header = read_header(write(path, GgufFile(keys, version=2)))
    assert header.values["tokenizer.chat_template"] == Scalar(ValueType.STRING, None)
    assert header.values["last"] == Scalar(ValueType.UINT32, 1)


TWO = [Tensor("a", (64,), 0, 0), Tensor("b", (64,), 0, 256)]

REFUSED: dict[str, tuple[GgufFile | bytes, str]] = {
    "empty": (b"", "is empty: a download that failed"),
    "three bytes": (b"GGU", "cut off after 3 bytes"),
    "magic only": (b"GGUF", "ends after 4 bytes"),
    "zip": (b"PK\3\4" + bytes(60), "a ZIP archive"),
    "old ggml": (b"tjgg" + bytes(60), "in the GGJT format"),
    "version 0": (GgufFile(version=0), "version is 0"),
    "version 1": (GgufFile(version=1), "version is 1"),
    "version 4": (GgufFile(version=4), "version is 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian (version 3)"),
    "no counts": (b"GGUF" + struct.pack("<I", 3), "ends inside its header"),
    "huge key count": (GgufFile(n_keys=HUGE), f"more than {MAX_KEYS}"),
    "huge tensor count": (GgufFile(n_tensors=HUGE), f"more than {MAX_TENSORS}"),
    "one key too many": (GgufFile(n_keys=len(LLAMA_KEYS) + 1), "ends inside its header"),
    "one tensor too many": (GgufFile(n_tensors=1), "ends inside its header"),
    "huge key": (GgufFile().encoded()[:24] + struct.pack("<Q", HUGE), "a key claims"),
    "key past the end": (GgufFile().encoded()[:24] + struct.pack("<Q", 1000), "ends inside its header"),
    "empty key": (GgufFile([("", 1)]), "an empty key"),
    "duplicate key": (GgufFile([("a", 1), ("a", 1)]), "the key 'a' twice"),
    "unknown value type": (GgufFile({"a": Typed(13, b"")}), "type 13"),
    "huge string": (GgufFile({"a": Typed(ValueType.STRING, struct.pack("<Q", HUGE))}), "ends inside"),
    "huge array": (GgufFile({"a": array(ValueType.UINT64, HUGE, b"")}), "ends inside"),
    "huge array of strings": (GgufFile({"a": array(ValueType.STRING, HUGE, b"")}), f"than {MAX_STRINGS}"),
    "strings past the end": (GgufFile({"a": array(ValueType.STRING, 3, string("x"))}), "ends inside"),
    "string jumps past the end": (
        GgufFile({"a": array(ValueType.STRING, 2, struct.pack("<Q", 2**63) * 2)}),
        "ends inside",
    ),
    "array of arrays": (GgufFile({"a": array(ValueType.ARRAY, 1, value(1))}), "array of arrays"),
    "array of nothing": (GgufFile({"a": array(99, 1, b"")}), "type 99"),
    "alignment 0": (GgufFile({"general.alignment": 0}), "power of two"),
    "alignment 48": (GgufFile({"general.alignment": 48}), "power of two"),
    "alignment as string": (GgufFile({"general.alignment": "32"}), "power of two"),
    "alignment as array": (GgufFile({"general.alignment": int_array([32])}), "power of two"),
    "alignment past the end": (
        GgufFile({"general.alignment": 2**31}, [Tensor("a")], bytes(128)),
        "an incomplete download?",
    ),
    "tensor twice": (GgufFile(tensors=[Tensor("a"), Tensor("a", offset=128)], data=bytes(256)), "'a' twice"),
    "tensor name too long": (GgufFile(tensors=[Tensor("x" * 64)]), "more than 63"),
    "five axes": (GgufFile(tensors=[Tensor("a", (1,) * 5)]), "5 axes"),
    "axes overflow": (GgufFile(tensors=[Tensor("a", (2**32, 2**32))]), "claims"),
    "huge axis": (GgufFile(tensors=[Tensor("a", (HUGE,))]), "claims"),
    "row not a multiple of the block": (GgufFile(tensors=[Tensor("a", (33,), 8)]), "block of 32"),
    "unaligned offset": (GgufFile(tensors=[Tensor("a", offset=8)], data=bytes(256)), "multiple of 32"),
    "offset past the end": (GgufFile(tensors=[Tensor("a", offset=2**40)], data=bytes(256)), "incomplete"),
    "offset at the last byte": (
        GgufFile(tensors=[Tensor("a", offset=HUGE - 31)], data=bytes(256)),
        "incomplete",
    ),
    "data missing": (GgufFile(tensors=[Tensor("a")]), "an incomplete download?"),
    "one byte missing": (GgufFile(tensors=TWO, data=bytes(511)), "an incomplete download?"),
    "tensors overlap": (GgufFile(tensors=[TWO[0], Tensor("b", (64,), 0, 224)], data=bytes(512)), "overlap"),
    "tensors at one place": (
        GgufFile(tensors=[TWO[0], Tensor("b", (64,), 0, 0)], data=bytes(512)),
        "overlap",
    ),
    "tensor inside another": (
        GgufFile(
            tensors=[Tensor("a", (128,)), Tensor("b", (8,), 0, 64), Tensor("c", (8,), 0, 512)],
            data=bytes(600),
        ),
        "overlap",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_one_line(case: str, path: Path) -> None:
    file, reason = REFUSED[case]
    with pytest.raises(ModelFileError) as caught:
        read_header(write(path, file))
    message = str(caught.value)
    assert reason in message
    assert str(path) in message
    assert message.isprintable()


def test_tensors_in_any_order_and_empty_ones(path: Path) -> None:
    tensors = [TWO[1], TWO[0], Tensor("none", (0,), 0, 256)]
    header = read_header(write(path, GgufFile(tensors=tensors, data=bytes(512))))
    assert [tensor.name for tensor in header.tensors] == ["b", "a", "none"]


def test_every_truncation_is_refused(path: Path) -> None:
    keys = {**LLAMA_KEYS, "tokens": string_array(["a", "bb"])}
    whole = GgufFile(keys, [Tensor("a", (8,))], bytes(32)).encoded()
    read_header(write(path, whole))
    for end in range(len(whole)):
        with pytest.raises(ModelFileError):
            read_header(write(path, whole[:end]))


def test_names_from_the_file_cannot_break_the_line(path: Path) -> None:
    evil = "x\n\x1b[31mkvquant: all good\u202e" + "y" * 200
    for file in (
        GgufFile([(evil, 1), (evil, 1)]),
        GgufFile(tensors=[Tensor("a\nb"), Tensor("a\nb")], data=bytes(256)),
        GgufFile({"general.architecture": evil}),
        GgufFile({"general.architecture": evil, f"{evil}.block_count": 0}),
    ):
        with pytest.raises((ModelFileError, ShapeError)) as caught:
            read_shape(write(path, file))
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["missing.gguf", "with\nnewline.gguf", "nul\0byte.gguf", "x" * 5000])
def test_paths_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        read_header(tmp_path / name)
    assert str(caught.value).isprintable()


def test_directories_pipes_and_devices(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, reason in (
        (tmp_path, "directory"),
        (pipe, "regular file"),
        (Path("/dev/zero"), "regular file"),
    ):
        with pytest.raises(ModelFileError, match=reason):
            read_header(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission(path: Path) -> None:
    write(path, GgufFile()).chmod(0)
    with pytest.raises(ModelFileError, match="Permission denied"):
        read_header(path)


def test_a_large_file_costs_as_much_as_its_header(path: Path) -> None:
    """300,000 tokens, as many merges, and 15 GB of tensors that are never touched (the file is sparse)."""
    words = string_array(["▁word"] * 300_000)
    keys = {**LLAMA_KEYS, "tokenizer.ggml.tokens": words, "tokenizer.ggml.merges": words}
    keys["tokenizer.ggml.scores"] = int_array([0] * 300_000)
    write(path, GgufFile(keys, [Tensor("big", (15_000_000_000,), 24)], b"\0"))
    os.truncate(path, path.stat().st_size + 15_000_000_000)
    started = time.process_time()
    header = read_header(path)
    seconds = time.process_time() - started
    assert header.tensors[0].n_bytes == 15_000_000_000
    # Measured: 0.1 s of processor time. The bound leaves room for a slower machine.
    assert seconds < 1


def test_memory_does_not_grow_with_the_vocabulary(path: Path) -> None:
    words = string_array(["▁word"] * 20_000)
    write(path, GgufFile({**LLAMA_KEYS, "tokenizer.ggml.tokens": words, "scores": int_array([0] * 200_000)}))
    tracemalloc.start()
    read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One window of the file at a time, where all of it would be more than a megabyte.
    assert peak < 2**20


def test_a_sparse_file_of_zeros_ends_soon(path: Path) -> None:
    """The most strings the reader will step over, all of length 0: a hole in the file costs no disk."""
    head = GgufFile({"a": array(ValueType.STRING, MAX_STRINGS, b"")}, n_keys=2).encoded()
    write(path, head)
    os.truncate(path, len(head) + 16 * MAX_STRINGS)
    with pytest.raises(ModelFileError, match="an empty key"):
        read_header(path)


def only_clear_errors(path: Path, data: bytes) -> None:
    """A file gives a shape, or one printable line in the two error types a caller expects."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        shape = read_shape(path)
        assert 1 <= shape.n_layer <= 512
        assert shape_from_json(shape_to_json(shape)) == shape
    except (ModelFileError, ShapeError) as error:
        assert str(error).isprintable(), error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * 2**20


@pytest.fixture(scope="module")
def real_headers(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Whole small models, their tensors included, one per architecture."""
    folder = tmp_path_factory.mktemp("fuzz")
    found = []
    for arch in sorted(ARCHITECTURES):
        n_layer = {"gemma3n": 21, "exaone4": 2}.get(arch, 4)
        model = RandomModel(
            arch=arch, n_layer=n_layer, n_head=2, n_head_kv=1, head_dim=16, n_ff=16, n_shared_kv=0
        )
        found.append(write_random_gguf(folder / f"{arch}.gguf", model).read_bytes())
    return found


edits = st.lists(
    st.tuples(
        st.integers(0, 2**20),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, HUGE]).map(
                lambda n: struct.pack("<Q", n)
            ),
            st.sampled_from([0, 4, 5, 8, 9, 12, 2**31, 2**32 - 1]).map(lambda n: struct.pack("<I", n)),
        ),
    ),
    min_size=1,
    max_size=4,
)


@given(st.data(), edits)
def test_mutated_models_never_do_worse(
    real_headers: list[bytes],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    edits: list[tuple[int, bytes]],
) -> None:
    """Overwrite bytes of real headers, with extreme numbers among them; most of a small model is header."""
    content = bytearray(data.draw(st.sampled_from(real_headers)))
    header_bytes = min(len(content), 12_000)
    for position, replacement in edits:
        at = position % header_bytes
        content[at : at + len(replacement)] = replacement
    only_clear_errors(tmp_path_factory.getbasetemp() / "mutated.gguf", bytes(content))


keys = st.sampled_from(
    [
        "block_count",
        "context_length",
        "embedding_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.key_length_swa",
        "nextn_predict_layers",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.shared_kv_layers",
        "full_attention_interval",
        "attention.recurrent_layers",
        "feed_forward_length",
        "shortconv.l_cache",
        "ssm.conv_kernel",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.group_count",
        "attention.key_length_mla",
        "attention.value_length_mla",
    ]
)
numbers = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 64, 512, 513, 2**16, 2**24, 2**32 - 1]), st.integers(0, 2**32 - 1)
)
values = st.one_of(
    numbers,
    st.booleans(),
    st.floats(width=32),
    st.text(max_size=4),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: number(ValueType.INT32, n)),
    st.lists(st.integers(-2, 5), max_size=6).map(int_array),
    st.lists(st.integers(0, 1), max_size=6).map(lambda items: int_array(items, ValueType.BOOL)),
    st.lists(st.text(max_size=3), max_size=3).map(string_array),
    st.integers(0, 5).map(lambda n: array(ValueType.FLOAT32, n, struct.pack("<f", float("nan")) * n)),
)


@given(st.sampled_from(sorted(ARCHITECTURES)), st.dictionaries(keys, values, max_size=8))
def test_any_values_give_a_shape_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, arch: str, changed: dict[str, Any]
) -> None:
    """Well-formed files with arbitrary values: the rules themselves must not fail either."""
    common = {key.replace("llama.", f"{arch}."): item for key, item in llama_keys().items()}
    content = {
        **common,
        "general.architecture": arch,
        **{f"{arch}.{key}": item for key, item in changed.items()},
    }
    only_clear_errors(tmp_path_factory.getbasetemp() / "values.gguf", GgufFile(content).encoded())


def test_the_fuzz_check_notices_a_traceback(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvquant.model.gguf_header._Reader._tensors", lambda *_: {}["missing"])
    with pytest.raises(KeyError):
        only_clear_errors(path, GgufFile().encoded())
