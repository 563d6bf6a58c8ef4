"""GGUF files byte by byte, so that tests can write the ones that no tool would."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvquant.model.gguf_types import STRUCT_CODES, ValueType

LLAMA_KEYS: Mapping[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 4096,
    "llama.embedding_length": 256,
    "llama.block_count": 4,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


@dataclass(frozen=True)
class Typed:
    """A value whose type is not the one its Python type suggests, or whose bytes are given as they are."""

    type: int
    data: bytes


def number(value_type: ValueType, value: float) -> Typed:
    return Typed(value_type, struct.pack("<" + STRUCT_CODES[value_type], value))


def array(item_type: int, n: int, data: bytes) -> Typed:
    return Typed(ValueType.ARRAY, struct.pack("<IQ", item_type, n) + data)


def int_array(items: Sequence[int], item_type: ValueType = ValueType.INT32) -> Typed:
    return array(item_type, len(items), struct.pack(f"<{len(items)}{STRUCT_CODES[item_type]}", *items))


def string_array(items: Sequence[str]) -> Typed:
    return array(ValueType.STRING, len(items), b"".join(string(item) for item in items))


def value(item: Any) -> bytes:
    """Type and bytes of a value: str, bool, int (uint32), float (float32) or Typed."""
    if isinstance(item, str):
        item = Typed(ValueType.STRING, string(item))
    elif isinstance(item, bool):
        item = number(ValueType.BOOL, item)
    elif isinstance(item, int):
        item = number(ValueType.UINT32, item)
    elif isinstance(item, float):
        item = number(ValueType.FLOAT32, item)
    return struct.pack("<I", item.type) + item.data


@dataclass(frozen=True)
class Tensor:
    name: str
    ne: Sequence[int] = (32,)
    type: int = 0
    offset: int = 0

    def encoded(self) -> bytes:
        extents = struct.pack(f"<{len(self.ne)}Q", *self.ne)
        return (
            string(self.name)
            + struct.pack("<I", len(self.ne))
            + extents
            + struct.pack("<IQ", self.type, self.offset)
        )


@dataclass(frozen=True)
class GgufFile:
    """A file to encode; counts default to the truth."""

    keys: Sequence[tuple[str, Any]] | Mapping[str, Any] = field(default_factory=lambda: LLAMA_KEYS)
    tensors: Sequence[Tensor] = ()
    data: bytes = b""
    version: int = 3
    magic: bytes = b"GGUF"
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = 32

    def encoded(self) -> bytes:
        pairs = list(self.keys.items()) if isinstance(self.keys, Mapping) else list(self.keys)
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(pairs) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        head += b"".join(string(key) + value(item) for key, item in pairs)
        head += b"".join(tensor.encoded() for tensor in self.tensors)
        return head + (b"\0" * (-len(head) % self.alignment) + self.data if self.data else b"")


def llama_keys(**changes: Any) -> dict[str, Any]:
    """LLAMA_KEYS with ``llama.`` keys replaced, dots written as two underscores; None removes a key."""
    keys = dict(LLAMA_KEYS)
    for name, item in changes.items():
        key = f"llama.{name.replace('__', '.')}"
        keys.pop(key, None)
        if item is not None:
            keys[key] = item
    return keys


def arch_keys(arch: str, n_layer: int = 4, **changes: Any) -> dict[str, Any]:
    """The common keys of another architecture, changed as `llama_keys` changes them."""
    renamed = {
        key.replace("llama.", f"{arch}."): item
        for key, item in llama_keys(**{"block_count": n_layer, **changes}).items()
    }
    return {**renamed, "general.architecture": arch}
