"""Squared error of the choices behind tq3, tq2, k5x3 and k4x2, and of the formats, on normal values.

    python benchmarks/format_distortion.py --out benchmarks/results/format-distortion.json

Each number is the mean of ‖x − x̃‖² / ‖x‖² over blocks of independent normal values, which is what a Hadamard
matrix makes of a head at best. `format_study.py` measures the same choices on real models.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from format_study import PEAKS, quantizers
from kvquant.formats.coded import CodedBlock
from kvquant.formats.registry import ORDERED_TYPES, get_format
from kvquant.formats.turboquant.codebook import lloyd_max
from provenance import provenance, write_record

PARTS = ((64, 3), (64, 2), (32, 5), (32, 4), (32, 3), (32, 2))
CHOICES = (
    *("l{}n1", "l{}c1", "l{}s1", "l{}b1", "g{}c1", "l{}c2", "l{}c3"),
    *("p{}c1", "p{}c2", "p{}c3", "a{}n1", "a{}c3", "a{}s3"),
)


def lost(x: Any, back: Any) -> float:
    """Return the mean share of squared norms that is error, rows (n, width) of either library."""
    exact, error = np.asarray(x, np.float64), np.asarray(back, np.float64) - np.asarray(x, np.float64)
    return float(np.mean((error**2).sum(1) / (exact**2).sum(1)))


def choices(n_blocks: int) -> list[dict[str, Any]]:
    """Return what each choice loses, choices in the notation of `format_study`; a share."""
    entries = []
    for n, bits in PARTS:
        x = torch.from_numpy(np.random.default_rng(n).standard_normal((n_blocks, n)).astype(np.float32))
        entries.append({"n": n, "bits": bits, "choice": "exact, norm", "lost": lloyd_max(n, bits).distortion})
        for how in CHOICES:
            if how.startswith("p") and bits not in PEAKS:
                continue
            (quantizer,) = quantizers(f"{n}{how.format(bits)}")
            entries.append({"n": n, "bits": bits, "choice": how.format(""), "lost": lost(x, quantizer(x))})
    return entries


def formats(n_blocks: int) -> list[dict[str, Any]]:
    """Return what each part of the formats loses."""
    entries = []
    for name in ("tq3", "tq2", *ORDERED_TYPES):
        fmt, place = get_format(name), 0
        assert isinstance(fmt, CodedBlock)
        x = np.random.default_rng(0).standard_normal((n_blocks, 64)).astype(np.float32)
        back = fmt.dequantize(fmt.quantize(x), 64)
        for part in fmt.parts:
            cut = slice(place, place + part.n_values)
            place += part.n_values
            entries.append(
                {"format": name, "values": [cut.start, cut.stop], "lost": lost(x[:, cut], back[:, cut])}
            )
    return entries


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=10_000, help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = provenance("benchmarks/format_distortion.py", ("numpy", "scipy", "torch"))
    record["blocks"] = options.blocks
    record["choices"], record["formats"] = choices(options.blocks), formats(options.blocks)
    for entry in record["choices"] + record["formats"]:
        print(entry, file=sys.stderr)
    write_record(record, options.out)


if __name__ == "__main__":
    main()
