"""Speed and distortion of TurboQuant on one thread.

Speed: MB/s of float32 read (encode) or written (decode) in the process's CPU time, so that waiting for other
processes does not count; median over the rounds, all formats interleaved in every round. Time per value at
widths from 64 to 2048 shows the growth with the width.

Distortion: the mean of ‖x - x̃‖² over unit vectors, divided by the exact value of the codebook, with its
standard error. On uniform vectors, and averaged over seeds on vectors that are hardest to flatten: one
coordinate, two, or noise under one channel forty times as loud.

    python benchmarks/turboquant.py --out benchmarks/results/turboquant.json
"""

from __future__ import annotations

import os

# Before NumPy is imported: the dense rotation and the sketch of prod are matrix products.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvquant.formats.registry import get_format
from kvquant.formats.turboquant.codebook import lloyd_max
from kvquant.formats.turboquant.mse import TurboQuantMSE
from kvquant.formats.turboquant.prod import TurboQuantProd
from provenance import provenance, write_record

TARGET_MB_PER_S = 150
SPEED_FORMATS = (*(f"tq_mse_{b}b" for b in (1, 2, 3, 4, 8)), "tq_mse_4b-nc", "tq_mse_4b-qr", "tq_prod_4b")
SPEED_WIDTH = 128
WIDTHS = (64, 80, 96, 101, 128, 256, 512, 1024, 2048)
HEAD_DIMS = (64, 80, 96, 128, 256)
SPIKY_SEEDS = 24

Float32Array = npt.NDArray[np.float32]


def speed(
    names: tuple[str, ...], widths: tuple[int, ...], n_values: int, rounds: int
) -> list[dict[str, Any]]:
    """Return one entry for every format and width."""
    cases = []
    for name in names:
        for width in widths:
            x = np.random.default_rng(0).standard_normal((n_values // width, width), np.float32)
            cases.append((get_format(name), x, get_format(name).quantize(x)))
    seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in cases]
    for _ in range(rounds):
        for (fmt, x, packed), (encode, decode) in zip(cases, seconds, strict=True):
            start = time.process_time()
            fmt.quantize(x)
            middle = time.process_time()
            fmt.dequantize(packed, x.shape[1])
            encode.append(middle - start)
            decode.append(time.process_time() - middle)
    return [
        {
            "format": fmt.name,
            "width": x.shape[1],
            "encode": _rates(encode, x),
            "decode": _rates(decode, x),
        }
        for (fmt, x, _), (encode, decode) in zip(cases, seconds, strict=True)
    ]


def _rates(seconds: list[float], x: Float32Array) -> dict[str, float]:
    median = statistics.median(seconds)
    return {
        "mb_per_s": round(x.nbytes / median / 1e6, 1),
        "mb_per_s_best": round(x.nbytes / min(seconds) / 1e6, 1),
        "ns_per_value": round(median / x.size * 1e9, 2),
    }


def unit_rows(x: npt.NDArray[np.floating]) -> Float32Array:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def squared_errors(fmt: Any, x: Float32Array) -> npt.NDArray[np.float64]:
    return np.sum((x.astype(np.float64) - fmt.dequantize(fmt.quantize(x), x.shape[1])) ** 2, axis=1)


def spiky(width: int) -> Float32Array:
    """Return vectors of one coordinate, of two, and of noise under a loud channel: (3 * width, width)."""
    one_hot = np.eye(width)
    noise = np.random.default_rng(0).standard_normal((width, width))
    noise[:, width // 3] *= 40
    return unit_rows(np.concatenate((one_hot, one_hot + np.roll(one_hot, 1, axis=0), noise)))


def distortion(n_vectors: int) -> list[dict[str, Any]]:
    """Return measured over exact distortion of mse for every head width, number of bits and rotation."""
    entries = []
    for width in HEAD_DIMS:
        x = unit_rows(np.random.default_rng(1).standard_normal((n_vectors, width)))
        for bits in (1, 2, 3, 4):
            exact = lloyd_max(width, bits).distortion
            for rotation in ("hadamard", "haar"):
                errors = squared_errors(TurboQuantMSE(bits, rotation=rotation), x)
                corrected = squared_errors(TurboQuantMSE(bits, rotation=rotation, norm_correction=True), x)
                formats = [TurboQuantMSE(bits, rotation=rotation, seed=seed) for seed in range(SPIKY_SEEDS)]
                on_spiky = np.mean([squared_errors(fmt, spiky(width)).mean() for fmt in formats])
                entries.append(
                    {
                        "width": width,
                        "bits": bits,
                        "rotation": rotation,
                        "exact": exact,
                        "ratio": round(float(errors.mean()) / exact, 4),
                        "ratio_standard_error": round(float(errors.std()) / n_vectors**0.5 / exact, 4),
                        "norm_corrected_ratio": round(float(corrected.mean()) / exact, 4),
                        "spiky_ratio": round(float(on_spiky) / exact, 4),
                    }
                )
    return entries


def inner_products(n_vectors: int, n_seeds: int) -> list[dict[str, Any]]:
    """Return slope (1: no bias) and variance of prod at width 64, and of the same bits spent on mse."""
    width, entries = 64, []
    rng = np.random.default_rng(2)
    for bits in (2, 3, 4):
        theory = lloyd_max(width, bits - 1).distortion * (np.pi / 2 - 1 / width) / width
        for kind in (TurboQuantProd, TurboQuantMSE):
            errors, slopes = [], []
            for seed in range(n_seeds):
                x, y = (unit_rows(rng.standard_normal((n_vectors, width))) for _ in range(2))
                fmt = kind(bits, norm_type="f32", seed=seed)
                restored = fmt.dequantize(fmt.quantize(x), width).astype(np.float64)
                errors.append(np.sum(y * (restored - x), axis=1))
                slopes.append(np.sum(x * restored, axis=1))
            entries.append(
                {
                    "format": kind(bits).name,
                    "slope": round(float(np.mean(slopes)), 5),
                    "variance_over_prods_theory": round(float(np.mean(np.square(errors))) / theory, 4),
                }
            )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    record = provenance("benchmarks/turboquant.py", ("numpy", "scipy"))
    record["speed"] = speed(SPEED_FORMATS, (SPEED_WIDTH,), 1 << 22, arguments.rounds)
    record["growth"] = speed(("tq_mse_4b", "tq_mse_4b-qr"), WIDTHS, 1 << 20, arguments.rounds)
    record["distortion"] = distortion(10_000)
    record["inner_products"] = inner_products(500, 40)
    rate = next(entry for entry in record["speed"] if entry["format"] == "tq_mse_4b")["encode"]["mb_per_s"]
    record["target"] = {"mb_per_s": TARGET_MB_PER_S, "format": "tq_mse_4b", "met": rate >= TARGET_MB_PER_S}
    for entry in record["speed"] + record["growth"]:
        print(
            f"{entry['format']:14} width {entry['width']:4}  encode {entry['encode']['mb_per_s']:7.1f} MB/s "
            f"{entry['encode']['ns_per_value']:6.2f} ns  decode {entry['decode']['mb_per_s']:7.1f} MB/s",
            file=sys.stderr,
        )
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
