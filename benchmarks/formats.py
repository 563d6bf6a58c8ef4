"""Throughput of the ggml formats on one thread: kvquant, gguf-py and ggml's C, interleaved in one run.

Every round times all contenders on the same data one after another, so that a busy machine slows all of
them. Time is the process's CPU time, so that waiting for other processes does not count. Medians over the
rounds are reported, in GB/s of float32 read (quantize) or written (dequantize).

    python tools/build_libggml.py --source "$(kvquant llama fetch)"
    python benchmarks/formats.py --out benchmarks/results/formats.json
"""

from __future__ import annotations

import os

# Before NumPy is imported: nothing here uses BLAS, but nothing may start threads either.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

import kvquant
from kvquant.formats.ggml import COMMIT
from libggml import LibGGML, find_library
from provenance import provenance, write_record

FORMATS = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "f16", "bf16")
WIDTH = 128

Contender = Callable[[], npt.NDArray[Any]]


def contenders(name: str, x: npt.NDArray[np.float32], ggml: LibGGML) -> dict[str, dict[str, Contender]]:
    """Return direction -> who -> a call without arguments. gguf-py has no encoder for iq4_nl."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    packed = ggml.quantize(x, name)
    encoders: dict[str, Contender] = {
        "kvquant": lambda: kvquant.quantize(x, name),
        "c": lambda: ggml.quantize(x, name),
    }
    if name != "iq4_nl":
        encoders["gguf_py"] = lambda: gguf.quants.quantize(x, kind)
    decoders: dict[str, Contender] = {
        "kvquant": lambda: kvquant.dequantize(packed, name, width=WIDTH),
        "c": lambda: ggml.dequantize(packed, name, WIDTH),
        "gguf_py": lambda: gguf.quants.dequantize(packed, kind),
    }
    return {"quantize": encoders, "dequantize": decoders}


def measure(calls: dict[str, Contender], n_bytes: int, rounds: int) -> dict[str, Any]:
    """Return GB/s per contender (median) with the spread over rounds, and whether all gave the same bytes."""
    results = {who: call().tobytes() for who, call in calls.items()}
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    for _ in range(rounds):
        for who, call in calls.items():
            start = time.process_time()
            call()
            seconds[who].append(time.process_time() - start)
    rates = {who: [n_bytes / s / 1e9 for s in taken] for who, taken in seconds.items()}
    medians = {who: statistics.median(rate) for who, rate in rates.items()}
    return {
        "gb_per_s": {who: round(value, 3) for who, value in medians.items()},
        "least_and_most": {who: [round(min(rate), 3), round(max(rate), 3)] for who, rate in rates.items()},
        "times_gguf_py": round(medians["kvquant"] / medians["gguf_py"], 2) if "gguf_py" in medians else None,
        "times_c": round(medians["kvquant"] / medians["c"], 2),
        "same_bytes": len(set(results.values())) == 1,
    }


def peak_extra_mib(x: npt.NDArray[np.float32]) -> float:
    """Return by how much the process grew beyond the result while packing ``x``, in MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    packed = kvquant.quantize(x, "q8_0")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round((after - before) / 1024 - packed.nbytes / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=64, help="float32 data per call, in MiB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    library = find_library()
    if library is None:
        sys.exit(
            'formats: error: no libggml; run tools/build_libggml.py --source "$(kvquant llama fetch)" first'
        )
    build = library.parent / "build.json"
    record = provenance("benchmarks/formats.py", ("numpy", "gguf"))
    record["llama_cpp_commit"] = COMMIT
    record["libggml"] = json.loads(build.read_text()) if build.exists() else None
    x = np.random.default_rng(0).standard_normal((arguments.mib * 2**18 // WIDTH, WIDTH), np.float32)
    record["data"] = {"values": "N(0,1), float32, seed 0", "shape": list(x.shape), "rounds": arguments.rounds}
    record["temporary_mib_q8_0"] = peak_extra_mib(x)
    record["results"] = {}
    ggml = LibGGML(library)
    print(f"{'':21}{'kvquant':>9}{'gguf-py':>9}{'C':>9}   GB/s of float32", file=sys.stderr)
    for name in FORMATS:
        # iq4_nl searches 16 scales per block; a sixteenth of the data takes as long.
        rows = x[: len(x) // 16] if name == "iq4_nl" else x
        for direction, calls in contenders(name, rows, ggml).items():
            result = measure(calls, rows.nbytes, arguments.rounds)
            record["results"].setdefault(name, {})[direction] = result
            rates = result["gb_per_s"]
            line = "".join(f"{rates.get(who, float('nan')):9.2f}" for who in ("kvquant", "gguf_py", "c"))
            print(f"{name:8} {direction:12}{line}", file=sys.stderr)
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
