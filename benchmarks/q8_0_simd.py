"""Count how often the SIMD encoder of q8_0 stores something else than the reference function.

llama.cpp fills a KV cache with libggml-cpu's `quantize_row_q8_0`; this package follows
`quantize_row_q8_0_ref`.

    python tools/build_libggml.py --source "$(kvquant llama fetch)"
    python tools/build_libggml.py --source "$(kvquant llama fetch)" --native
    python benchmarks/q8_0_simd.py > benchmarks/results/q8_0_simd.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from kvquant.formats.ggml import COMMIT
from libggml import LibGGML, find_library, quantize_q8_0_simd

BLOCKS_PER_STEP = 1 << 16


def count(reference: LibGGML, simd: Path, n_blocks: int, seed: int) -> dict[str, float]:
    """Return how many blocks, scales and codes differ on N(0,1) data, and the error of both."""
    random = np.random.default_rng(seed)
    blocks = scales = codes = largest = 0
    error = {"reference": 0.0, "simd": 0.0}
    for _ in range(0, n_blocks, BLOCKS_PER_STEP):
        x = random.standard_normal((BLOCKS_PER_STEP, 32), np.float32)
        packed = {"reference": reference.quantize_ref(x, "q8_0"), "simd": quantize_q8_0_simd(simd, x)}
        different = packed["reference"] != packed["simd"]
        blocks += int(different.any(axis=1).sum())
        scales += int(different[:, :2].any(axis=1).sum())
        codes += int(different[:, 2:].sum())
        steps = np.subtract(*(rows[:, 2:].view(np.int8) for rows in packed.values()), dtype=np.int16)
        largest = max(largest, int(np.abs(steps).max()))
        for who, rows in packed.items():
            error[who] += float(np.sum((reference.dequantize(rows, "q8_0", 32) - x.astype(np.float64)) ** 2))
    n_blocks = -(-n_blocks // BLOCKS_PER_STEP) * BLOCKS_PER_STEP
    return {
        "n_blocks": n_blocks,
        "blocks_that_differ": blocks,
        "scales_that_differ": scales,
        "codes_that_differ": codes,
        "codes_that_differ_share": codes / (32 * n_blocks),
        "largest_difference_in_steps": largest,
        "mse_reference": error["reference"] / (32 * n_blocks),
        "mse_simd": error["simd"] / (32 * n_blocks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Count where ggml's SIMD q8_0 differs from its reference.")
    parser.add_argument("--blocks", type=int, default=1 << 22)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    base, simd = find_library(), find_library("ggml-cpu")
    if base is None or simd is None:
        sys.exit("q8_0_simd: error: no library; run tools/build_libggml.py, also with --native")
    record = {
        "llama_cpp_commit": COMMIT,
        "libggml_cpu": json.loads((simd.parent / "build.json").read_text()),
        "machine": platform.machine(),
        "data": f"N(0,1), float32, seed {arguments.seed}",
        **count(LibGGML(base), simd, arguments.blocks, arguments.seed),
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
