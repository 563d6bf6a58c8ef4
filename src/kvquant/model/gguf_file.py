"""A language model as GGUF: one file, or all the shards it was split into; and what other GGUF files are.

Every command opens a model here, so that a file that is none is named in the same words everywhere. How
shards are named and checked is llama_split_path (src/llama.cpp) and the constructor of llama_model_loader
(src/llama-model-loader.cpp) at the pin.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kvquant.errors import ModelFileError
from kvquant.model.gguf_header import Array, GgufHeader, Scalar, TensorInfo, read_header, shown
from kvquant.model.gguf_types import REMOVED_TYPES

MAX_SHARDS = 9999
"""More than any model has; the names leave five digits."""

_CHUNK_BYTES = 2**20

# By `general.architecture`: (what it is, what to do).
OTHER_ARCHITECTURES = {
    "clip": (
        "a multimodal projector, not a language model",
        "give the model it belongs to, and the projector to llama-server with --mmproj",
    ),
    "controlvector": (
        "a control vector, not a model",
        "give the model it was made for, and the vector to llama-server with --control-vector",
    ),
    "imatrix": (
        "an importance matrix (imatrix), not a model",
        "give the model; the matrix is for llama-quantize --imatrix",
    ),
    **dict.fromkeys(
        ("eagle3", "dflash", "gemma4-assistant"),
        (
            "a draft head for speculative decoding, not a model of its own",
            "give the model it drafts for, and the head to llama-server as its draft model",
        ),
    ),
    **dict.fromkeys(
        (
            *("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert"),
            *("jina-bert-v2", "jina-bert-v3", "gemma-embedding", "t5encoder"),
        ),
        ("an encoder, which has no use for a KV cache", "give a model that generates text"),
    ),
    **dict.fromkeys(
        ("dream", "llada", "llada-moe", "rnd1"),
        ("a diffusion language model, which has no KV cache", "give one that generates token by token"),
    ),
    "clef": ("a decision model, which has no KV cache", "give a model that generates text"),
    "wavtokenizer-dec": ("a voice decoder, which has no KV cache", "give the language model beside it"),
    **dict.fromkeys(
        (
            *("flux", "sd1", "sd2", "sd3", "sdxl", "aura", "hidream", "wan", "lumina2", "ltxv", "cosmos"),
            *("hyvid", "qwen_image", "pixart"),
        ),
        ("an image or video model of another program, not a language model", "give a language model"),
    ),
}


@dataclass(frozen=True)
class GgufModel:
    """A model's shards in order, the one that holds the keys first; one for a model in one file."""

    shards: tuple[GgufHeader, ...]

    @property
    def header(self) -> GgufHeader:
        """Of the file with the model's keys."""
        return self.shards[0]

    @property
    def path(self) -> Path:
        """The file that llama.cpp is given."""
        return self.header.path

    @property
    def shown(self) -> str:
        """The path as it may be printed."""
        return self.header.shown

    @property
    def name(self) -> str:
        """What the file calls its model, else the file's own name."""
        return self.header.text("general.name") or shown(self.path.name)

    @property
    def arch(self) -> str:
        """`general.architecture`, "" for one that does not fit a line."""
        return self.header.text("general.architecture")

    @property
    def n_layer(self) -> int:
        """Layers in the file, 0 where it does not say."""
        return self.header.number(f"{self.arch}.block_count") or 0

    @property
    def n_bytes(self) -> int:
        """Of all shards."""
        return sum(shard.n_file_bytes for shard in self.shards)

    def sha256(self) -> str:
        """Return the SHA-256 of all bytes, shard after shard. Raises ModelFileError for one that is gone."""
        digest = hashlib.sha256()
        for shard in self.shards:
            try:
                with shard.path.open("rb") as file:
                    while chunk := file.read(_CHUNK_BYTES):
                        digest.update(chunk)
            except OSError as error:
                raise ModelFileError(f"{shard.shown} cannot be read: {error.strerror}") from error
        return digest.hexdigest()

    def not_loadable(self) -> tuple[str, ...]:
        """Say, a line each, why the pinned llama.cpp will not load the model although its header is sound."""
        tensors = [tensor for shard in self.shards for tensor in shard.tensors]
        if not tensors:
            return (f"{self.shown} has no tensors: llama.cpp does not load it; get the whole model",)
        return _unknown_types(self.shown, tensors)

    def require_loadable(self) -> None:
        """Raise ModelFileError for the first of `not_loadable`."""
        for line in self.not_loadable():
            raise ModelFileError(line)


def open_model(path: str | Path) -> GgufModel:
    """Read the headers of a model, all its shards included.

    Raises ModelFileError, one line with the next step, for a file that is damaged or no language model, a
    shard that is not the first, and shards that are missing or do not belong together.
    """
    header = read_header(path)
    n_shards = header.number("split.count") or 1
    number = header.number("split.no") or 0
    if number > 0:
        of = f" of {n_shards}" if n_shards > 1 else ""
        raise ModelFileError(
            f"{header.shown} is shard {number + 1}{of} of a split model; give the first one, {_first(header)}"
        )
    _check_kind(header)
    if n_shards <= 1:
        return GgufModel((header,))
    if n_shards > MAX_SHARDS:
        _fail(header, f"it claims {n_shards} shards, more than {MAX_SHARDS}", "get the file again")
    shards = (header, *(_shard(header, index, n_shards) for index in range(1, n_shards)))
    _check_together(shards)
    return GgufModel(shards)


# -- shards --------------------------------------------------------------------------------------------------


def shard_name(prefix: str, index: int, n_shards: int) -> str:
    """The name llama.cpp looks for: ``prefix``-00001-of-00002.gguf for index 0 of 2."""
    return f"{prefix}-{index + 1:05}-of-{n_shards:05}.gguf"


def _shard(first: GgufHeader, index: int, n_shards: int) -> GgufHeader:
    ending = shard_name("", 0, n_shards)
    name = first.path.name
    if not name.endswith(ending) or name == ending:
        _fail(
            first,
            f"it is the first of {n_shards} shards, but its name does not end in {ending}",
            "give all shards their names back: llama.cpp finds them by name",
        )
    path = first.path.with_name(shard_name(name.removesuffix(ending), index, n_shards))
    if not path.is_file():
        raise ModelFileError(
            f"{first.shown} needs shard {index + 1} of {n_shards}, {shown(path.name)}, which is not beside "
            "it; get the missing file"
        )
    header = read_header(path)
    found = (header.number("split.no"), header.number("split.count"))
    if found != (index, n_shards):
        says = "no shard" if found[0] is None else f"shard {found[0] + 1} of {found[1]}"
        _fail(
            header, f"its name says shard {index + 1} of {n_shards}, its header {says}", "get the file again"
        )
    return header


def _check_together(shards: tuple[GgufHeader, ...]) -> None:
    """The shards are of one model: no tensor twice, and as many as the first one says there are."""
    names = Counter(tensor.name for shard in shards for tensor in shard.tensors)
    twice = next((name for name, n in names.items() if n > 1), None)
    again = "get all files of one model again"
    if twice is not None:
        _fail(shards[0], f"two of its shards have the tensor {_quoted(twice)}", again)
    claimed, n_tensors = shards[0].number("split.tensors.count"), names.total()
    if claimed is not None and claimed != n_tensors:
        _fail(shards[0], f"its shards have {n_tensors} tensors, its header claims {claimed}", again)


def _first(header: GgufHeader) -> str:
    match = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", header.path.name)
    if match is None:
        return "named ...-00001-of-....gguf"
    return shown(shard_name(match[1], 0, int(match[2])))


# -- kinds ---------------------------------------------------------------------------------------------------


def _check_kind(header: GgufHeader) -> None:
    """Refuse what is no language model, whatever else its header lacks."""
    arch, kind = header.text("general.architecture"), header.text("general.type")
    found = None
    if kind == "adapter" or any(key.startswith("adapter.") for key in header.values):
        found = _adapter(header)
    elif kind == "imatrix" or "imatrix.chunk_count" in header.values:
        found = OTHER_ARCHITECTURES["imatrix"]
    elif kind == "mmproj":
        found = OTHER_ARCHITECTURES["clip"]
    elif arch in OTHER_ARCHITECTURES:
        found = OTHER_ARCHITECTURES[arch]
    elif not header.tensors and isinstance(header.values.get("tokenizer.ggml.tokens"), Array):
        # A split model's first shard may hold keys alone.
        if (header.number("split.count") or 1) <= 1:
            found = ("a vocabulary only, without the model's tensors", "give the whole model")
    elif kind not in ("", "model"):
        found = (f"of the type {kind!r}, not a model", "give a language model")
    if found is not None:
        raise ModelFileError(f"{header.shown} is {found[0]}; {found[1]}")
    named = header.values.get("general.architecture")
    if not isinstance(named, Scalar) or not isinstance(named.value, str) or not named.value:
        raise ModelFileError(
            f"{header.shown} does not name its architecture, so it is not a model; give a model's GGUF file"
        )


def _adapter(header: GgufHeader) -> tuple[str, str]:
    name = {"lora": "LoRA", "": "LoRA"}.get(header.text("adapter.type"), "model")
    if "adapter.alora.invocation_tokens" in header.values:
        name = "activated LoRA (aLoRA)"
    article = "an" if name[0] == "a" else "a"
    what = f"{article} {name} adapter, not a model"
    return what, "give the model it was made for, and the adapter to llama-server with --lora"


def _unknown_types(where: str, tensors: list[TensorInfo]) -> tuple[str, ...]:
    """A line for every type that the pin does not have, the first tensor with it named."""
    first: dict[int, TensorInfo] = {}
    for tensor in tensors:
        if tensor.n_bytes is None:
            first.setdefault(tensor.type_number, tensor)
    return tuple(
        f"{where}: the tensor {_quoted(tensor.name)} has the type {REMOVED_TYPES[number]} ({number}), which "
        "was removed from llama.cpp; quantize the model again"
        if number in REMOVED_TYPES
        else f"{where}: the tensor {_quoted(tensor.name)} has ggml type {number}, a newer llama.cpp's or a "
        "fork's: the pinned llama.cpp does not load it; run it with the program it was made for, or quantize "
        "the model again"
        for number, tensor in sorted(first.items())
    )


def _fail(header: GgufHeader, problem: str, advice: str) -> NoReturn:
    raise ModelFileError(f"{header.shown} is not a usable GGUF file: {problem}; {advice}")


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:57] + "...")
