"""Models as users have them: in shards, under any path, and everything that is taken for one and is none."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvquant.cli.main import kvquant
from kvquant.errors import ModelFileError
from kvquant.model.architectures import read_shape
from kvquant.model.first_bytes import MAGIC, named_by_first_bytes
from kvquant.model.gguf_file import open_model, shard_name
from kvquant.model.gguf_header import read_header
from kvquant.model.gguf_types import REMOVED_TYPES, ValueType
from model.gguf_bytes import GgufFile, Tensor, Typed, arch_keys, int_array, llama_keys, number, string
from model.gguf_bytes import string_array as strings

DATA = bytes(range(128))


def model(**changes: Any) -> bytes:
    """A llama with one tensor."""
    return GgufFile(llama_keys(**changes), [Tensor("token_embd.weight")], DATA).encoded()


def write_shards(folder: Path, n: int = 3, prefix: str = "m", last: bytes = DATA) -> Path:
    """A model in n shards of one tensor each, the first of which holds the keys."""
    for index in range(n):
        keys: dict[str, Any] = {
            **(arch_keys("llama") if index == 0 else {}),
            "split.no": number(ValueType.UINT16, index),
            "split.count": number(ValueType.UINT16, n),
            "split.tensors.count": number(ValueType.INT32, n),
        }
        data = last if index == n - 1 else DATA
        file = GgufFile(keys, [Tensor(f"blk.{index}.weight")], data)
        (folder / shard_name(prefix, index, n)).write_bytes(file.encoded())
    return folder / shard_name(prefix, 0, n)


# -- shards --------------------------------------------------------------------------------------------------


def test_a_split_model_is_all_its_shards(tmp_path: Path) -> None:
    first = write_shards(tmp_path)
    opened = open_model(first)
    paths = sorted(tmp_path.iterdir())
    assert [shard.path for shard in opened.shards] == paths
    assert opened.n_bytes == sum(path.stat().st_size for path in paths)
    assert opened.sha256() == hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    assert opened.not_loadable() == ()
    assert read_shape(first).n_layer == 4


def test_any_shard_changes_the_digest(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    a = open_model(write_shards(tmp_path / "a"))
    b = open_model(write_shards(tmp_path / "b", last=DATA[::-1]))
    assert a.n_bytes == b.n_bytes
    assert a.sha256() != b.sha256()


def test_a_model_in_one_file_keeps_its_digest(tmp_path: Path) -> None:
    for count in (None, 1):
        path = tmp_path / "m.gguf"
        split = {} if count is None else {"split.count": number(ValueType.UINT16, count)}
        path.write_bytes(GgufFile({**arch_keys("llama"), **split}, [Tensor("a")], DATA).encoded())
        opened = open_model(path)
        assert opened.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
        assert opened.n_bytes == path.stat().st_size


def rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / old).rename(folder / new) and None


def replaced(index: int, **keys: Any) -> Callable[[Path], None]:
    """Shard ``index`` of three with other split keys; None leaves one out."""

    def change(folder: Path) -> None:
        given = {
            "split.no": number(ValueType.UINT16, index),
            "split.count": number(ValueType.UINT16, 3),
            **{key.replace("__", "."): value for key, value in keys.items()},
        }
        file = GgufFile(
            {k: v for k, v in given.items() if v is not None}, [Tensor(f"blk.{index}.weight")], DATA
        )
        (folder / shard_name("m", index, 3)).write_bytes(file.encoded())

    return change


def duplicate(folder: Path) -> None:
    keys = {"split.no": number(ValueType.UINT16, 1), "split.count": number(ValueType.UINT16, 3)}
    file = GgufFile(keys, [Tensor("blk.0.weight")], DATA)
    (folder / shard_name("m", 1, 3)).write_bytes(file.encoded())


def extra_tensor(folder: Path) -> None:
    keys = {"split.no": number(ValueType.UINT16, 1), "split.count": number(ValueType.UINT16, 3)}
    file = GgufFile(keys, [Tensor("a"), Tensor("b", offset=128)], DATA * 2)
    (folder / shard_name("m", 1, 3)).write_bytes(file.encoded())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / shard_name("m", 1, 3)).unlink(),
            "needs shard 2 of 3, m-00002-of-00003.gguf",
        ),
        (lambda folder: (folder / shard_name("m", 2, 3)).unlink(), "needs shard 3 of 3"),
        (
            lambda folder: (folder / shard_name("m", 2, 3)).write_bytes(b"GGUF"),
            "m-00003-of-00003.gguf is not",
        ),
        (replaced(1, split__no=number(ValueType.UINT16, 2)), "shard 2 of 3, its header shard 3 of 3"),
        (replaced(1, split__count=number(ValueType.UINT16, 4)), "its header shard 2 of 4"),
        (replaced(1, split__no=None), "its header no shard"),
        (replaced(1, split__count=None), "its header shard 2 of None"),
        (duplicate, "two of its shards have the tensor 'blk.0.weight'"),
        (extra_tensor, "its shards have 4 tensors, its header claims 3"),
    ],
)
def test_shards_that_do_not_belong_together(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    first = write_shards(tmp_path)
    open_model(first)
    change(tmp_path)
    with pytest.raises(ModelFileError, match="; ") as caught:
        open_model(first)
    assert words in str(caught.value)


def test_shards_are_found_by_name(tmp_path: Path) -> None:
    first = write_shards(tmp_path)
    other = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match=r"does not end in -00001-of-00003\.gguf"):
        open_model(other)


def test_a_later_shard_names_the_first(tmp_path: Path) -> None:
    write_shards(tmp_path)
    later = tmp_path / shard_name("m", 1, 3)
    with pytest.raises(ModelFileError, match=r"is shard 2 of 3 .*give the first one, m-00001-of-00003\.gguf"):
        open_model(later)
    with pytest.raises(ModelFileError, match=r"named \.\.\.-00001-of-"):
        open_model(later.rename(tmp_path / "x.gguf"))


def test_a_claim_of_many_shards_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(
        GgufFile({**arch_keys("llama"), "split.count": 2**32 - 1}, [Tensor("a")], DATA).encoded()
    )
    with pytest.raises(ModelFileError, match="claims 4294967295 shards"):
        open_model(path)


# -- kinds ---------------------------------------------------------------------------------------------------

TENSOR = [Tensor("a")]
NOT_MODELS: dict[str, tuple[Mapping[str, Any], str, str]] = {
    "lora": (
        {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"},
        "a LoRA adapter",
        "--lora",
    ),
    "old lora": ({"general.architecture": "qwen2", "adapter.type": "lora"}, "a LoRA adapter", "--lora"),
    "alora": (
        {"general.type": "adapter", "adapter.alora.invocation_tokens": int_array([1], ValueType.UINT32)},
        "an activated LoRA (aLoRA) adapter",
        "--lora",
    ),
    "control vector": ({"general.architecture": "controlvector"}, "a control vector", "--control-vector"),
    "imatrix": ({"general.type": "imatrix", "imatrix.chunk_count": 2}, "an importance matrix", "imatrix"),
    "projector": ({"general.architecture": "clip"}, "a multimodal projector", "--mmproj"),
    "new projector": ({"general.architecture": "x", "general.type": "mmproj"}, "a multimodal projector", ""),
    "draft": (arch_keys("eagle3"), "a draft head", "the model it drafts for"),
    "assistant": (arch_keys("gemma4-assistant"), "a draft head", "the model it drafts for"),
    "encoder": (arch_keys("bert"), "an encoder", "generates text"),
    "diffusion": (arch_keys("llada"), "a diffusion language model", "token by token"),
    "voice": (arch_keys("wavtokenizer-dec"), "a voice decoder", ""),
    "images": ({"general.architecture": "flux"}, "an image or video model", "a language model"),
    "another type": ({**arch_keys("llama"), "general.type": "new"}, "of the type 'new'", "a language model"),
    "no architecture": ({"general.name": "x"}, "does not name its architecture", "a model's GGUF file"),
}

COMMANDS: dict[str, list[str]] = {
    "memory": ["memory", "--ctx", "256"],
    "shape": ["shape"],
    "policy": ["policy", "q8_0"],
    "analyze": ["analyze"],
    "doctor": ["doctor", "--root", "/nonexistent"],
    "serve": ["llama", "serve", "--kv-layers", "q8_0"],
}


def output(command: str, path: Path, *more: str) -> str:
    """What a command prints about a model, its exit code being no traceback's."""
    result = CliRunner().invoke(kvquant, [*COMMANDS[command], "--model", str(path), *more])
    assert result.exit_code != 0
    line = str(result.exception) if isinstance(result.exception, ModelFileError) else ""
    if command == "doctor":
        line = result.stdout.replace("\n          fix: ", "; ")
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize("kind", NOT_MODELS)
def test_what_is_no_language_model_is_named_alike_everywhere(tmp_path: Path, kind: str) -> None:
    keys, what, advice = NOT_MODELS[kind]
    path = tmp_path / "file.gguf"
    path.write_bytes(GgufFile(keys, TENSOR, DATA).encoded())
    with pytest.raises(ModelFileError) as caught:
        read_shape(path)
    line = str(caught.value)
    assert what in line and advice in line
    assert "convert the model again" not in line and "--shape" not in line
    for command in COMMANDS:
        said = output(command, path)
        about = line.removeprefix(str(path)).partition("; ")[0]
        assert about in said, command
    # A shape beside it makes no model of it.
    assert what in output("memory", path, "--shape", "llama-8b")
    assert what in output("doctor", path, "--shape", "llama-8b")


def test_a_vocabulary_is_no_model_and_a_bare_header_is_half_of_one(tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(GgufFile({**llama_keys(), "tokenizer.ggml.tokens": strings(["a"])}).encoded())
    with pytest.raises(ModelFileError, match=r"is a vocabulary only, .*; give the whole model"):
        open_model(path)
    path.write_bytes(GgufFile(llama_keys()).encoded())
    assert "has no tensors" in "".join(open_model(path).not_loadable())
    result = CliRunner().invoke(kvquant, ["memory", "--ctx", "256", "--model", str(path)])
    assert result.exit_code == 0 and "has no tensors" in result.stderr


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"<!doctype html><html>", "a web page"),
        (b"\xef\xbb\xbf\n <html>", "a web page"),
        (b'{"error": "Repository not found"}', "a JSON file"),
        (b"Access to model x is restricted. You must log in.\n", "a text that starts with 'Access to model"),
        (b"Entry not found", "a text that starts with 'Entry not found'"),
        (struct.pack("<Q", 2000) + b'{"__metadata__"', "a safetensors file"),
        (b"PK\x03\x04" + bytes(90), "a ZIP archive"),
        (b"\x80\x02}q\x00", "a Python pickle"),
        (b"tjgg\3\0\0\0", "GGJT"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (bytes(512), "nothing but zeros"),
        (b"", "empty"),
        (b"GG", "cut off after 2 bytes"),
        ("Datei nicht gefunden: \N{LATIN SMALL LETTER U WITH DIAERESIS}".encode()[:-1], "a text"),
    ],
)
def test_files_of_other_formats_are_named_alike_everywhere(tmp_path: Path, head: bytes, what: str) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(head)
    for command in COMMANDS:
        said = output(command, path)
        assert what in said and "; " in said, command


def test_other_bytes_are_not_named() -> None:
    assert named_by_first_bytes(b"\x01\x02\x03\x04" * 9) is None
    assert named_by_first_bytes(MAGIC + bytes(3)) is None


# -- types, keys, paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_number", [*REMOVED_TYPES, 96, 137, 2**32 - 1])
def test_types_that_the_pin_does_not_load(tmp_path: Path, type_number: int) -> None:
    path = tmp_path / "file.gguf"
    tensors = [Tensor("first"), Tensor("odd\n", type=type_number, offset=128)]
    path.write_bytes(GgufFile(llama_keys(), tensors, DATA * 2).encoded())
    (line,) = open_model(path).not_loadable()
    assert line.isprintable() and "'odd\\n'" in line
    if type_number in REMOVED_TYPES:
        assert f"{REMOVED_TYPES[type_number]} ({type_number}), which was removed" in line
        assert line.endswith("quantize the model again")
    else:
        assert f"ggml type {type_number}, a newer llama.cpp's or a fork's" in line
    result = CliRunner().invoke(kvquant, ["memory", "--ctx", "256", "--model", str(path)])
    assert result.exit_code == 0 and line in result.stderr
    assert line in output("serve", path)
    assert line.removeprefix(f"{path}: ").rpartition("; ")[0] in output("doctor", path)


def test_keys_are_bytes(tmp_path: Path) -> None:
    """llama.cpp loads such a file: what is odd and not asked for is passed over."""
    path = tmp_path / "file.gguf"
    bad = string(b"zz.n\xffx.utf8") + struct.pack("<I", ValueType.STRING) + string(b"\xff\0\n")
    nul = string(b"zz\0nul") + struct.pack("<I", ValueType.UINT8) + b"\1"
    whole = GgufFile(llama_keys(), n_keys=len(llama_keys()) + 2).encoded()
    path.write_bytes(whole + bad + nul)
    assert read_shape(path).n_layer == 4
    path.write_bytes(whole + bad + bad)
    with pytest.raises(ModelFileError, match=r"the key 'zz\.n\\udcffx\.utf8' twice"):
        read_shape(path)


@pytest.mark.parametrize(
    "odd",
    [
        int_array([], ValueType.UINT32),
        int_array([1], ValueType.UINT64),
        strings(["a"] * 3),
        Typed(ValueType.FLOAT64, struct.pack("<d", float("nan"))),
        Typed(ValueType.BOOL, b"\7"),
    ],
)
def test_odd_values_are_one_line(tmp_path: Path, odd: Typed) -> None:
    path = tmp_path / "file.gguf"
    for key in (
        "split.count",
        "split.no",
        "split.tensors.count",
        "general.type",
        "adapter.type",
        "general.name",
    ):
        path.write_bytes(GgufFile({**llama_keys(), key: odd}, TENSOR, DATA).encoded())
        try:
            assert read_shape(path).n_layer == 4
        except ModelFileError as error:
            assert str(error).isprintable()


NAMES = [
    "my\u3000model.gguf",
    "my\u00a0model.gguf",
    os.fsdecode(b"my\xffmodel.gguf"),
    "two\nlines.gguf",
    "quote'\".gguf",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_path_is_opened_as_given(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(model())
    assert open_model(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    for command in (["memory", "--ctx", "256"], ["doctor", "--root", "/nonexistent"], ["policy", "q8_0"]):
        assert CliRunner().invoke(kvquant, [*command, "--model", str(path)]).exit_code == 0
    shown = CliRunner().invoke(kvquant, ["shape", "--model", str(path)]).stdout
    assert all(line.isprintable() for line in shown.splitlines())
    document = json.loads(CliRunner().invoke(kvquant, ["shape", "--model", str(path), "--json"]).stdout)
    assert document["source"] == str(path)
    path.write_bytes(model()[:-1])
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_shards_of_any_path(tmp_path: Path, name: str) -> None:
    assert len(open_model(write_shards(tmp_path, prefix=name.removesuffix(".gguf"))).shards) == 3
