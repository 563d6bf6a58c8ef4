"""What the intervals and the floor of a KL divergence have to allow for, on the reference model.

The program's memory with one document and with all of them; the divergence of q8_0 and q4_0 caches and the
floor on both paths; and the standard error of the mean by the length of the blocks that are drawn, which
would not depend on it if tokens were independent.

    python benchmarks/divergence.py --programs DIR --out benchmarks/results/divergence.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from kvquant.evals.divergence import (
    PROGRAM,
    CacheTypes,
    DivergenceRequest,
    TokenDivergence,
    measure_divergence,
)
from kvquant.evals.divergence_summary import summarize_divergence
from kvquant.evals.statistics import bootstrap_blocks, bootstrap_mean
from kvquant.llama.build import read_info
from kvquant.processes.background import BackgroundProgram, clean_environment
from kvquant.reference.tasks import Size, Split, held_out_documents
from kvquant.results.comparison import Interval
from provenance import ROOT, provenance, write_record

MODEL = ROOT / "eval/reference-model/kvquant-reference-f16.gguf"
N_CTX = 512
BLOCKS = (1, 16, 64)
CACHES = ("q8_0", "q4_0")
Z = 1.96
"""Half-widths of 95 % intervals in standard errors."""


def write_documents(folder: Path, n_documents: int) -> tuple[Path, ...]:
    """Write documents of the reference model's test split, each longer than a chunk, and return the files."""
    documents = held_out_documents(1, Split.TEST, n_documents, Size(n_tokens=N_CTX, most_pairs=64))
    files = tuple(folder / f"{index}.txt" for index in range(n_documents))
    for file, document in zip(files, documents, strict=True):
        file.write_text(document.text)
    return files


def measured(programs: Path, request: DivergenceRequest, folder: Path) -> list[TokenDivergence]:
    """Run the program and return its tokens."""
    tokens: list[TokenDivergence] = []
    measure_divergence(programs, request, folder / "log", tokens.append)
    return tokens


def standard_errors(tokens: Sequence[TokenDivergence]) -> dict[str, float | None]:
    """Standard error of the mean KL by block: so many neighbouring tokens, or whole chunks."""
    kl = [token.kl for token in tokens]
    found = {str(block): _error(bootstrap_mean(kl, block)) for block in BLOCKS}
    chunks = groupby(tokens, lambda token: (token.document, token.chunk))
    by_chunk = [[token.kl for token in chunk] for _, chunk in chunks]
    interval = bootstrap_blocks([sum(chunk) for chunk in by_chunk], [len(chunk) for chunk in by_chunk])
    return {**found, "chunk": _error(interval)}


def _error(interval: Interval | None) -> float | None:
    return None if interval is None else (interval.high - interval.low) / 2 / Z


def row(programs: Path, name: str, request: DivergenceRequest, folder: Path) -> dict[str, Any]:
    """Measure one cache on one path."""
    tokens = measured(programs, request, folder)
    summary = summarize_divergence(tokens)
    if summary is None:
        raise SystemExit("the texts are too short: no token was scored")
    return {
        "cache": name,
        "path": request.path,
        "n_tokens": summary.n_tokens,
        "n_blocks": summary.n_blocks,
        "mean": summary.mean,
        "interval": summary.interval,
        "top1": summary.top1.value,
        "standard_error_by_block": standard_errors(tokens),
    }


def peak_n_bytes(programs: Path, request: DivergenceRequest, folder: Path) -> int:
    """The most memory that the program has resident, mapped model included."""
    peak = 0
    argv = [str(programs / PROGRAM), *request.arguments()]
    with BackgroundProgram(argv, folder / "log", env=clean_environment()) as program:
        while program.exit_status() is None:
            peak = max(peak, program.peak_n_bytes() or 0)
            time.sleep(0.01)
    return peak


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=Path, required=True, help="folder of llama-kv-divergence")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    build = read_info(options.programs.parent)
    if build is None:
        raise SystemExit(f"{options.programs} is no folder of programs that kvquant llama build has made")
    record = provenance("benchmarks/divergence.py", ("numpy", "scipy"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = write_documents(folder, options.documents)
        request = DivergenceRequest(MODEL, texts, CacheTypes(), parse_special=True, n_ctx=N_CTX, n_threads=1)
        rows = []
        for path in ("prefill", "decode"):
            on_path = replace(request, path=path)
            same = replace(on_path, n_tokens=N_CTX)  # exactly 0, which needs no more tokens
            rows += [
                row(options.programs, "the same", same, folder),
                row(options.programs, "floor", on_path.against_itself(), folder),
            ]
            for cache in CACHES:
                types = CacheTypes(k_type=cache, v_type=cache)
                rows.append(row(options.programs, cache, replace(on_path, policy=types), folder))
        record |= {
            "series_digest": build.series_digest,
            "n_ctx": N_CTX,
            "rows": rows,
            "peak_n_bytes": {
                "1 document": peak_n_bytes(options.programs, replace(request, texts=texts[:1]), folder),
                f"{len(texts)} documents": peak_n_bytes(options.programs, request, folder),
            },
        }
    write_record(record, options.out)


if __name__ == "__main__":
    main()
