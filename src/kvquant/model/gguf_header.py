"""Read a GGUF header without trusting it: keys, values and tensor places, never the tensors.

The format is docs/gguf.md of ggml; what is accepted follows ggml/src/gguf.cpp:gguf_init_from_reader at the
pin, with tighter limits on counts so that a hostile file costs neither memory nor time. Versions 2 and 3,
little endian.
"""

from __future__ import annotations

import io
import math
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from kvquant.errors import ModelFileError
from kvquant.model.first_bytes import FIRST_BYTES, MAGIC, named_by_first_bytes
from kvquant.model.gguf_types import STRUCT_CODES, TENSOR_TYPES, ValueType

DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_TENSOR_NAME = 63
"""GGML_MAX_NAME - 1 (ggml/include/ggml.h), the terminator left out."""

# Limits of this reader, each far above any real file: the largest vocabularies have 0.3 million entries and
# twice as many merges, the largest files some thousand tensors, the longest headers some ten MB.
MAX_HEADER_BYTES = 2**30
MAX_KEYS = 2**16
MAX_TENSORS = 2**17
MAX_STRINGS = 2**24
MAX_KEY_BYTES = 2**16 - 1
KEPT_STRING_BYTES = 2**12
KEPT_ITEMS = 2**10

_WINDOW_BYTES = 2**18
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Scalar:
    """A single value; ``value`` is None for a string longer than KEPT_STRING_BYTES (chat templates)."""

    type: ValueType
    value: bool | int | float | str | None


@dataclass(frozen=True)
class Array:
    """``n`` values of one type; ``items`` is None for strings and where there are more than KEPT_ITEMS."""

    type: ValueType
    n: int
    items: tuple[bool | int | float, ...] | None


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's place in the file.

    name: bytes that are not UTF-8 are kept as surrogates. ne: values along each axis, the contiguous one
    first. type_number: a `ggml_type`; n_bytes is None for one that the pin does not have. offset: bytes from
    the start of the file.
    """

    name: str
    ne: tuple[int, ...]
    type_number: int
    offset: int
    n_bytes: int | None

    @property
    def type_name(self) -> str:
        """The type's name, "" for one that the pin does not have."""
        return TENSOR_TYPES[self.type_number].name if self.type_number in TENSOR_TYPES else ""


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the tensor data of one GGUF file.

    path: as given. n_file_bytes: of the whole file. values: by key, which to llama.cpp is bytes: those that
    are not UTF-8 are kept as surrogates.
    """

    path: Path
    n_file_bytes: int
    version: int
    values: Mapping[str, Scalar | Array]
    tensors: tuple[TensorInfo, ...]

    @property
    def shown(self) -> str:
        """The path as it may be printed."""
        return shown(self.path)

    def text(self, key: str) -> str:
        """The string at ``key``, "" where there is none, another type, or more than fits a line."""
        entry = self.values.get(key)
        value = entry.value if isinstance(entry, Scalar) else None
        return value if isinstance(value, str) and value.isprintable() and len(value) <= 100 else ""

    def number(self, key: str) -> int | None:
        """The integer at ``key``, None where there is none or another type."""
        entry = self.values.get(key)
        value = entry.value if isinstance(entry, Scalar) else None
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def shown(path: str | Path) -> str:
    """A path as it may be printed: escaped where a terminal would not show it as it is."""
    return str(path) if str(path).isprintable() else repr(str(path))


def read_header(path: str | Path) -> GgufHeader:
    """Read and check the header of the GGUF file at ``path``.

    Raises ModelFileError, one line, for anything that is not a complete, consistent GGUF file.
    """
    path = Path(path)
    try:
        # Asking before opening: opening a pipe would wait for a writer.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ModelFileError(f"{shown(path)} is {kind}; give the path of a .gguf file")
        with path.open("rb", buffering=0) as file:
            return _Reader(file, status.st_size, path).header()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelFileError(
            f"{shown(path)} cannot be read: {reason}; give the path of a .gguf file"
        ) from None


class _Reader:
    """A position in the file and a window of bytes around it; every method reads one construct."""

    def __init__(self, file: io.FileIO, size: int, path: Path) -> None:
        self._file = file
        self._size = size
        self._path = path
        self._at = 0
        self._window = b""
        self._window_at = 0
        self._n_strings = 0

    def header(self) -> GgufHeader:
        version = self._version()
        n_tensors = self._count("tensors", MAX_TENSORS)
        n_keys = self._count("keys", MAX_KEYS)
        values: dict[str, Scalar | Array] = {}
        for _ in range(n_keys):
            key = self._name("a key", MAX_KEY_BYTES)
            if not key or key in values:
                self._fail(f"it has {'the key ' + _short(key) + ' twice' if key else 'an empty key'}")
            values[key] = self._value(key)
        tensors = self._tensors(n_tensors, self._alignment(values))
        return GgufHeader(self._path, self._size, version, values, tensors)

    # -- bytes -----------------------------------------------------------------------------------------------

    def _fail(self, problem: str, advice: str = "get the file again") -> NoReturn:
        raise ModelFileError(f"{shown(self._path)} is not a usable GGUF file: {problem}; {advice}")

    def _fill(self, n_bytes: int) -> int:
        """Make ``n_bytes`` from here on available; return where they start in the window."""
        start = self._at - self._window_at
        if start >= 0 and start + n_bytes <= len(self._window):
            return start
        self._check_inside(n_bytes)
        self._file.seek(self._at)
        self._window = self._file.read(max(n_bytes, _WINDOW_BYTES)) or b""
        self._window_at = self._at
        if len(self._window) < n_bytes:
            self._fail("it became shorter while it was read", "wait until it is complete")
        return 0

    def _take(self, n_bytes: int) -> bytes:
        start = self._fill(n_bytes)
        self._at += n_bytes
        return self._window[start : start + n_bytes]

    def _skip(self, n_bytes: int) -> None:
        self._check_inside(n_bytes)
        self._at += n_bytes

    def _check_inside(self, n_bytes: int) -> None:
        end = self._at + n_bytes
        if end > self._size:
            self._fail(f"it ends inside its header, at byte {self._size}")
        if end > MAX_HEADER_BYTES:
            self._fail(f"its header is longer than {MAX_HEADER_BYTES} bytes")

    def _number(self, value_type: ValueType) -> bool | int | float:
        code = struct.Struct("<" + STRUCT_CODES[value_type])
        value: bool | int | float = code.unpack(self._take(code.size))[0]
        return value

    def _length(self) -> int:
        length: int = _LENGTH.unpack(self._take(_LENGTH.size))[0]
        return length

    # -- constructs ------------------------------------------------------------------------------------------

    def _version(self) -> int:
        head = self._take(min(FIRST_BYTES, self._size))
        self._at = 8
        if head[:4] != MAGIC:
            what, advice = named_by_first_bytes(head) or (
                f"not a GGUF file: it starts with {head[:4]!r} instead of {MAGIC!r}",
                "give the model as GGUF",
            )
            raise ModelFileError(f"{shown(self._path)} is {what}; {advice}")
        head = head[:8]
        if len(head) < 8:
            self._fail(f"it ends after {self._size} bytes")
        version = int.from_bytes(head[4:], "little")
        swapped = int.from_bytes(head[4:], "big")
        if version & 0xFFFF == 0 and 1 <= swapped <= 0xFFFF:
            self._fail(f"it is big-endian (version {swapped})", "convert it with gguf's gguf-convert-endian")
        if version not in (2, 3):
            self._fail(f"its version is {version}, this reads 2 and 3", "convert the model again")
        return version

    def _count(self, what: str, limit: int) -> int:
        count = self._length()
        if count > limit:
            self._fail(f"it claims {count} {what}, more than {limit}")
        return count

    def _name(self, what: str, limit: int) -> str:
        length = self._length()
        if length > limit:
            self._fail(f"{what} claims {length} bytes, more than {limit}")
        return self._take(length).decode("utf-8", "surrogateescape")

    def _type(self, key: str) -> ValueType:
        number = self._number(ValueType.UINT32)
        try:
            return ValueType(int(number))
        except ValueError:
            self._fail(f"the value of {_short(key)} has type {number}, which is none of GGUF's")

    def _value(self, key: str) -> Scalar | Array:
        value_type = self._type(key)
        if value_type is ValueType.ARRAY:
            return self._array(key)
        if value_type is not ValueType.STRING:
            return Scalar(value_type, self._number(value_type))
        length = self._length()
        if length > KEPT_STRING_BYTES:
            self._skip(length)
            return Scalar(value_type, None)
        return Scalar(value_type, self._take(length).decode("utf-8", errors="replace"))

    def _array(self, key: str) -> Array:
        item_type = self._type(key)
        n = self._length()
        if item_type is ValueType.ARRAY:
            self._fail(f"the value of {_short(key)} is an array of arrays, which GGUF does not allow")
        if item_type is ValueType.STRING:
            self._skip_strings(key, n)
            return Array(item_type, n, None)
        item_bytes = struct.calcsize("<" + STRUCT_CODES[item_type])
        if n > KEPT_ITEMS:
            self._skip(n * item_bytes)
            return Array(item_type, n, None)
        items = struct.unpack(f"<{n}{STRUCT_CODES[item_type]}", self._take(n * item_bytes))
        return Array(item_type, n, items)

    def _skip_strings(self, key: str, n: int) -> None:
        """Step over ``n`` strings. The inner loop touches only lengths: vocabularies have 10^5 of them."""
        self._n_strings += n
        if self._n_strings > MAX_STRINGS:
            self._fail(f"its arrays of strings, up to {_short(key)}, claim more than {MAX_STRINGS} strings")
        read_length = _LENGTH.unpack_from
        left = n
        while left:
            at = self._fill(_LENGTH.size)
            window, last = self._window, len(self._window) - _LENGTH.size
            while left and at <= last:
                at += _LENGTH.size + read_length(window, at)[0]
                left -= 1
            self._at = self._window_at + at
        self._skip(0)

    def _alignment(self, values: Mapping[str, Scalar | Array]) -> int:
        entry = values.get("general.alignment", Scalar(ValueType.UINT32, DEFAULT_ALIGNMENT))
        value = entry.value if isinstance(entry, Scalar) and entry.type is ValueType.UINT32 else None
        if not isinstance(value, int) or value <= 0 or value & (value - 1):
            self._fail("general.alignment is not a power of two in uint32")
        return value

    def _tensors(self, n: int, alignment: int) -> tuple[TensorInfo, ...]:
        found: dict[str, TensorInfo] = {}
        for _ in range(n):
            tensor = self._tensor(alignment)
            if tensor.name in found:
                self._fail(f"it has the tensor {_short(tensor.name)} twice")
            found[tensor.name] = tensor
        data_at = -(-self._at // alignment) * alignment
        placed = [replace(tensor, offset=data_at + tensor.offset) for tensor in found.values()]
        self._check_places(placed)
        return tuple(placed)

    def _tensor(self, alignment: int) -> TensorInfo:
        name = self._name("a tensor's name", MAX_TENSOR_NAME)
        n_dims = int(self._number(ValueType.UINT32))
        if n_dims > MAX_DIMS:
            self._fail(f"the tensor {_short(name)} has {n_dims} axes, more than {MAX_DIMS}")
        ne = tuple(self._length() for _ in range(n_dims))
        type_number = int(self._number(ValueType.UINT32))
        offset = self._length()
        n_values = math.prod(ne)
        if n_values >= 2**63:
            self._fail(f"the tensor {_short(name)} claims {ne} values")
        if offset % alignment:
            self._fail(f"the tensor {_short(name)} starts at {offset}, not a multiple of {alignment}")
        tensor_type = TENSOR_TYPES.get(type_number)
        if tensor_type is None:
            return TensorInfo(name, ne, type_number, offset, None)
        if ne and ne[0] % tensor_type.block_size:
            self._fail(
                f"the tensor {_short(name)} has rows of {ne[0]} values, "
                f"not a multiple of {tensor_type.name}'s block of {tensor_type.block_size}"
            )
        n_bytes = n_values // tensor_type.block_size * tensor_type.block_bytes
        return TensorInfo(name, ne, type_number, offset, n_bytes)

    def _check_places(self, tensors: list[TensorInfo]) -> None:
        """Every tensor lies inside the file and none reaches into the next."""
        previous, previous_end = None, 0
        for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.n_bytes or 0)):
            # Of a type that is not known, no byte can be missed.
            end = tensor.offset + (tensor.n_bytes or 0)
            if end > self._size:
                self._fail(
                    f"the tensor {_short(tensor.name)} ends at byte {end}, "
                    f"the file at {self._size} (an incomplete download?)"
                )
            if previous is not None and previous_end > tensor.offset:
                self._fail(f"the tensors {_short(previous.name)} and {_short(tensor.name)} overlap")
            if tensor.n_bytes:
                previous, previous_end = tensor, end


def _short(name: str) -> str:
    """A name from the file as it may be shown: quoted, escaped, one line, at most 60 characters."""
    return repr(name if len(name) <= 60 else name[:57] + "...")
