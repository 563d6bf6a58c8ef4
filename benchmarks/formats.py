"""Throughput of the ggml formats on one thread, by width of the rows: kvquant, gguf-py and ggml's C.

Every round times all contenders on the same data one after another, in an order of its own, so that a busy
machine slows all of them and none always finds the caches as the same other left them. Time is the process's
CPU time, so that waiting for other processes does not count. Medians over the rounds are reported, in GB/s of
float32 read (quantize) or written (dequantize).

Beside them stands what bounds them on this machine: the memory, and the fewest passes that NumPy needs for
the arithmetic of an encoder and of a decoder, whatever the bytes are.

    python tools/build_libggml.py --source "$(kvquant llama fetch)"
    python benchmarks/formats.py --out benchmarks/results/formats.json
"""

from __future__ import annotations

import os

# Before NumPy is imported: nothing here uses BLAS, but nothing may start threads either.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import json
import random
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
WIDTHS = (64, 128, 256, 1024, 4096, 8192)
BLOCK = 32
PIECE = 1 << 17
"""Values that the passes of a bound work on at a time, so that they stay in cache as kvquant's do."""

Contender = Callable[[], npt.NDArray[Any]]


def contenders(name: str, x: npt.NDArray[np.float32], ggml: LibGGML) -> dict[str, dict[str, Contender]]:
    """Return direction -> who -> a call without arguments. gguf-py has no encoder for iq4_nl."""
    width = x.shape[1]
    kind = gguf.GGMLQuantizationType[name.upper()]
    packed = ggml.quantize(x, name)
    encoders: dict[str, Contender] = {
        "kvquant": lambda: kvquant.quantize(x, name),
        "c": lambda: ggml.quantize(x, name),
    }
    if name != "iq4_nl":
        encoders["gguf_py"] = lambda: gguf.quants.quantize(x, kind)
    decoders: dict[str, Contender] = {
        "kvquant": lambda: kvquant.dequantize(packed, name, width=width),
        "c": lambda: ggml.dequantize(packed, name, width),
        "gguf_py": lambda: gguf.quants.dequantize(packed, kind),
    }
    return {"quantize": encoders, "dequantize": decoders}


def bounds(x: npt.NDArray[np.float32]) -> dict[str, Contender]:
    """Return name -> a call that does no more than what the name says, for as many values as ``x`` has."""
    blocks = x.reshape(-1, BLOCK)
    codes = blocks.astype(np.int8)
    scales = np.ascontiguousarray(blocks[:, :1])
    rows = np.empty((BLOCK // 4, PIECE // BLOCK * 4), np.float32)

    def decoder() -> npt.NDArray[Any]:
        out = np.empty_like(blocks)
        return np.multiply(codes, scales, out=out, dtype=np.float32)

    def encoder() -> npt.NDArray[Any]:
        out = np.empty(blocks.shape, np.int8)
        step = PIECE // BLOCK
        for start in range(0, len(blocks), step):
            piece = slice(start, start + step)
            np.copyto(rows.view("V16"), blocks[piece].view("V16").T)
            np.minimum.reduce(rows, axis=0)
            np.maximum.reduce(rows, axis=0)
            np.multiply(blocks[piece], scales[piece], out=out[piece], casting="unsafe")
        return out

    return {
        "fill": lambda: np.full_like(x, 1),
        "copy": lambda: x.copy(),
        "codes_times_scales": decoder,
        "extremes_and_codes": encoder,
    }


def timed(calls: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of processor time of every call, one entry a round."""
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    order = random.Random(0)
    for _ in range(rounds):
        for who, call in order.sample(list(calls.items()), len(calls)):
            start = time.process_time()
            call()
            seconds[who].append(time.process_time() - start)
    return seconds


def measure(calls: dict[str, Contender], n_bytes: int, rounds: int) -> dict[str, Any]:
    """Return GB/s per contender (median) with the spread over rounds, and whether all gave the same bytes."""
    results = {who: call().tobytes() for who, call in calls.items()}
    rates = {who: [n_bytes / s / 1e9 for s in taken] for who, taken in timed(calls, rounds).items()}
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
    parser.add_argument("--mib", type=int, default=8, help="float32 data per call, in MiB")
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
    values = np.random.default_rng(0).standard_normal(arguments.mib * 2**18, np.float32)
    record["data"] = {
        "values": "N(0,1), float32, seed 0",
        "n_values": values.size,
        "rounds": arguments.rounds,
    }
    record["temporary_mib_q8_0"] = peak_extra_mib(values.reshape(-1, 128))
    calls = bounds(values)
    for call in calls.values():
        call()
    record["bounds_gb_per_s"] = {
        what: round(values.nbytes / statistics.median(taken) / 1e9, 2)
        for what, taken in timed(calls, arguments.rounds).items()
    }
    record["results"] = {}
    ggml = LibGGML(library)
    print(f"{'':27}{'kvquant':>9}{'gguf-py':>9}{'C':>9}   GB/s of float32", file=sys.stderr)
    for name in FORMATS:
        for width in WIDTHS:
            # iq4_nl searches 16 scales per block; a sixteenth of the data takes as long.
            rows = values[: values.size // 16 if name == "iq4_nl" else None].reshape(-1, width)
            for direction, calls in contenders(name, rows, ggml).items():
                result = measure(calls, rows.nbytes, arguments.rounds)
                record["results"].setdefault(name, {}).setdefault(direction, {})[str(width)] = result
                rates = result["gb_per_s"]
                line = "".join(f"{rates.get(who, float('nan')):9.2f}" for who in ("kvquant", "gguf_py", "c"))
                print(f"{name:8}{width:6} {direction:12}{line}", file=sys.stderr)
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
