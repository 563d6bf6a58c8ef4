"""Divergence of policies from f16 with the patched attention and with stock's, token by token.

Both run in the patched build, which GGML_KV_ATTN=0 makes compute as stock does. Each is compared with f16
computed in the same way, so what differs is what attention itself adds to the cache's rounding. Another
rounding is another draw of the cache's own: chunks are short and many, and errors are those between chunks.

    python benchmarks/attention_divergence.py --programs "$(kvquant llama build)" \\
        --out benchmarks/results/attention-divergence.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from provenance import ROOT, provenance, write_record

MODEL = ROOT / "eval/reference-model/kvquant-reference-f16.gguf"
TEXTS = (ROOT / "LICENSE", ROOT / "docs/patching.md")
POLICIES = ("*:q8_0", "*:q4_0", "*:k=q4_0/v=q5_1", "0-1:q8_0,2-:iq4_nl")
PATHS = ("prefill", "decode")
N_CTX, SCORE_FROM = 128, 32


def divergences(
    programs: Path, policy: str, path: str, n_tokens: int, *, kv_attention: bool
) -> npt.NDArray[np.float64]:
    """Return the KL divergence of ``policy`` from f16 in each chunk, its mean over scored tokens, nats."""
    argv: list[str | Path] = [programs / "llama-kv-divergence", "--model", MODEL, "--kv-layers", policy]
    argv += ["--path", path, "--n-tokens", str(n_tokens), "--threads", "1"]
    argv += ["--ctx-size", str(N_CTX), "--score-from", str(SCORE_FROM)]
    for text in TEXTS:
        argv += ["--file", text]
    environment = {**os.environ, "GGML_KV_ATTN": "1" if kv_attention else "0"}
    done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    lines = map(json.loads, done.stdout.splitlines())
    return np.array([np.mean(line["kl"]) for line in lines if line["kind"] == "chunk"])


def compare(programs: Path, policy: str, path: str, n_tokens: int) -> dict[str, Any]:
    """Return both means with their standard errors, and those of the difference chunk by chunk."""
    patched, stock = (divergences(programs, policy, path, n_tokens, kv_attention=on) for on in (True, False))
    return {
        "policy": policy,
        "path": path,
        "n_chunks": len(patched),
        "patched": mean_and_error(patched),
        "stock": mean_and_error(stock),
        "difference": mean_and_error(patched - stock),
    }


def mean_and_error(values: npt.NDArray[np.float64]) -> list[float]:
    return [float(f"{values.mean():.4g}"), float(f"{values.std(ddof=1) / len(values) ** 0.5:.2g}")]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=Path, required=True, metavar="DIR", help="of the patched build")
    parser.add_argument("--tokens", type=int, default=1500, help="scored tokens (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON record")
    arguments = parser.parse_args(argv)
    record = provenance("benchmarks/attention_divergence.py", ("numpy",))
    info = json.loads((arguments.programs.parent / "build-info.json").read_text())
    record["build"] = {key: info[key] for key in ("commit", "series_digest", "compiler")}
    record["rows"] = []
    for path in PATHS:
        for policy in POLICIES:
            row = compare(arguments.programs, policy, path, arguments.tokens)
            record["rows"].append(row)
            print(row, file=sys.stderr, flush=True)
    write_record(record, arguments.out)


if __name__ == "__main__":
    main()
