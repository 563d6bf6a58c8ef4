"""ggml's quantizers through ctypes: the oracle for golden data, live tests and the benchmark.

The library is the one that KVQUANT_LIBGGML names, or else the one `tools/build_libggml.py` built last.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "libggml"

# What ggml calls to decode each type; f32 is a copy.
_DECODERS = {
    "f16": "ggml_fp16_to_fp32_row",
    "bf16": "ggml_bf16_to_fp32_row",
    "iq4_nl_cache": "dequantize_row_iq4_nl",
}


def find_library(target: str = "ggml-base") -> Path | None:
    """Return the path of the built library, None when there is none.

    Raises FileNotFoundError when KVQUANT_LIBGGML names a file that does not exist.
    """
    named = os.environ.get("KVQUANT_LIBGGML")
    if named and target == "ggml-base":
        if not Path(named).is_file():
            raise FileNotFoundError(f"KVQUANT_LIBGGML names {named}, which is no file")
        return Path(named)
    pointer = CACHE / f"{target}.path"
    library = CACHE / pointer.read_text().strip() if pointer.exists() else None
    return library if library and library.is_file() else None


class LibGGML:
    """ggml's reference encoders and decoders on NumPy arrays, by kvquant's format names."""

    def __init__(self, path: Path) -> None:
        self._lib = ctypes.CDLL(str(path))
        self._lib.ggml_row_size.restype = ctypes.c_size_t
        self._lib.ggml_quantize_chunk.restype = ctypes.c_size_t

    def quantize(self, x: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.uint8]:
        """Return what ggml's reference encoder stores for ``x``, float32 (n_rows, width): (n_rows, n_bytes).

        That is `ggml_quantize_chunk` without an importance matrix; for iq4_nl_cache, which it does not know,
        it is `quantize_row_iq4_nl_ref`.
        """
        x = np.ascontiguousarray(x, np.float32)
        if name == "iq4_nl_cache":
            return _with_zero_codes(x, self.quantize_ref(x, "iq4_nl"))
        n_rows, width = x.shape
        out = np.empty((n_rows, self.n_bytes(width, name)), np.uint8)
        rows = (ctypes.c_int64(0), ctypes.c_int64(n_rows), ctypes.c_int64(width))
        self._lib.ggml_quantize_chunk(_type(name), _pointer(x), _pointer(out), *rows, None)
        return out

    def quantize_ref(self, x: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.uint8]:
        """Return what `quantize_row_<name>_ref` stores for ``x``, float32 (n_rows, width)."""
        x = np.ascontiguousarray(x, np.float32)
        out = np.empty((len(x), self.n_bytes(x.shape[1], name)), np.uint8)
        self._lib[f"quantize_row_{name}_ref"](_pointer(x), _pointer(out), ctypes.c_int64(x.size))
        return out

    def dequantize(self, packed: npt.NDArray[np.uint8], name: str, width: int) -> npt.NDArray[np.float32]:
        """Return what ggml reads from ``packed``, uint8 (n_rows, n_bytes), as float32 (n_rows, width)."""
        packed = np.ascontiguousarray(packed)
        if name == "f32":
            return packed.view(np.float32)
        out = np.empty((len(packed), width), np.float32)
        decoder = self._lib[_DECODERS.get(name, f"dequantize_row_{name}")]
        decoder(_pointer(packed), _pointer(out), ctypes.c_int64(out.size))
        return out

    def n_bytes(self, width: int, name: str) -> int:
        """Return `ggml_row_size`: the bytes of a row of ``width`` values."""
        return int(self._lib.ggml_row_size(_type(name), ctypes.c_int64(width)))


def quantize_q8_0_simd(path: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return what libggml-cpu's `quantize_row_q8_0` stores for ``x``, float32 (n_rows, width)."""
    out = np.empty((len(x), x.shape[1] // 32 * 34), np.uint8)
    ctypes.CDLL(str(path)).quantize_row_q8_0(_pointer(x), _pointer(out), ctypes.c_int64(x.size))
    return out


def _with_zero_codes(x: npt.NDArray[np.float32], packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return iq4_nl rows with the codes of zeros in the blocks for which ggml copies uninitialised memory.

    `quantize_row_iq4_nl_ref` skips the search for a block whose magnitudes are all below 1e-15 and then
    packs a buffer it has not written; the scale is 0, so any codes decode to zeros.
    """
    blocks = packed.reshape(-1, 18).copy()
    skipped = np.abs(x).reshape(-1, 32).max(axis=1) < np.float32(1e-15)
    blocks[skipped, 2:] = 0x88
    return blocks.reshape(packed.shape)


def _type(name: str) -> int:
    return int(GGMLQuantizationType[name.removesuffix("_cache").upper()])


def _pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
