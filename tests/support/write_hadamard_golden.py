"""Write tests/golden/hadamard.npz: rows and what ggml's CPU backend makes of them with its Hadamard kernel.

Only this script writes that file. It runs one `ggml_mul_mat` marked as a Hadamard product, which the CPU
backend computes with `ggml_compute_forward_fwht`, as it does for K and V.

    python tests/support/write_hadamard_golden.py --library build/bin/libggml-cpu.so
"""

from __future__ import annotations

import argparse
import ctypes
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvquant.files import write_atomic

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "hadamard.npz"
BLOCKS = (64, 128, 256)
_F32 = 0  # GGML_TYPE_F32
_IS_HADAMARD = 1  # GGML_HINT_SRC0_IS_HADAMARD
_MEMORY = 16 << 20


class _InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class GGMLHadamard:
    """ggml's Hadamard kernel through ctypes."""

    def __init__(self, library: Path) -> None:
        """Load libggml-cpu and, from beside it, libggml-base."""
        self._base = ctypes.CDLL(str(library.with_name("libggml-base.so")), mode=ctypes.RTLD_GLOBAL)
        self._cpu = ctypes.CDLL(str(library))
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        signatures = {
            "ggml_init": (pointer, [_InitParams]),
            "ggml_free": (None, [pointer]),
            "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, size, size]),
            "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
            "ggml_mul_mat_set_hint": (None, [pointer, ctypes.c_int]),
            "ggml_new_graph": (pointer, [pointer]),
            "ggml_build_forward_expand": (None, [pointer, pointer]),
            "ggml_get_data": (pointer, [pointer]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self._base, name)
            function.restype, function.argtypes = result, arguments
        self._cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]

    def rotate(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return every row of ``x``, float32 (n, block), multiplied by the Hadamard matrix."""
        ggml, (n, block) = self._base, x.shape
        context = ggml.ggml_init(_InitParams(_MEMORY, None, False))
        # The kernel never reads the matrix, only its shape; zeros keep uninitialised memory out of the run.
        matrix = ggml.ggml_new_tensor_2d(context, _F32, block, block)
        ctypes.memset(ggml.ggml_get_data(matrix), 0, 4 * block * block)
        rows = ggml.ggml_new_tensor_2d(context, _F32, block, n)
        ctypes.memmove(ggml.ggml_get_data(rows), np.ascontiguousarray(x).ctypes.data, x.nbytes)
        product = ggml.ggml_mul_mat(context, matrix, rows)
        ggml.ggml_mul_mat_set_hint(product, _IS_HADAMARD)
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, product)
        if self._cpu.ggml_graph_compute_with_ctx(context, graph, 1):
            raise RuntimeError("ggml_graph_compute_with_ctx failed")
        out = np.empty_like(x)
        ctypes.memmove(out.ctypes.data, ggml.ggml_get_data(product), out.nbytes)
        ggml.ggml_free(context)
        return out


def rows(block: int) -> npt.NDArray[np.float32]:
    """Return float32 (8, block): Gaussian rows of several sizes, one-hot, constant, zeros, outliers."""
    rng = np.random.default_rng(block)
    x = rng.standard_normal((8, block)) * np.array([1, 1e-3, 1e30, 1e-40, 1, 1, 1, 1])[:, None]
    x[4] = np.eye(block)[3] * 7
    x[5] = 0.3
    x[6] = np.where(np.arange(block) % 2, 0.0, -0.0)
    x[7, ::5] *= 1e4
    return x.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write tests/golden/hadamard.npz from ggml's CPU backend.")
    parser.add_argument("--library", type=Path, required=True, help="libggml-cpu.so of the pinned tree")
    ggml = GGMLHadamard(parser.parse_args().library)
    arrays = {}
    for block in BLOCKS:
        arrays[f"x.{block}"] = rows(block)
        arrays[f"y.{block}"] = ggml.rotate(rows(block))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(GOLDEN, buffer.getvalue())


if __name__ == "__main__":
    main()
