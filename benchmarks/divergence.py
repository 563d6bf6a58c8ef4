"""What the intervals and the floor of a KL divergence have to allow for, on the reference model.

The program's memory with one document and with all of them; the divergence of q8_0 and q4_0 caches and the
floor on both paths; and the standard error of the mean by the length of the blocks that are drawn, which
would not depend on it if tokens were independent. With a model and a text, also what ten policies cost in one
run: beside one policy, with several at the same time, with contexts made for each chunk.

    python benchmarks/divergence.py --programs DIR --out benchmarks/results/divergence.json \\
        --time-model smollm2-135m.gguf --time-text prose.txt
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from kvquant.evals.divergence import (
    PROGRAM,
    CacheSetup,
    DivergenceRequest,
    FeedPath,
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


def measured(
    programs: Path, request: DivergenceRequest, folder: Path
) -> dict[CacheSetup, list[TokenDivergence]]:
    """Run the program and return the tokens of each policy."""
    tokens: dict[CacheSetup, list[TokenDivergence]] = {policy: [] for policy in request.policies}
    measure_divergence(
        programs, request, folder / "log", lambda index, chunk: tokens[request.policies[index]].extend(chunk)
    )
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


def rows(programs: Path, request: DivergenceRequest, path: FeedPath, folder: Path) -> list[dict[str, Any]]:
    """Measure the caches and the floor on one path."""
    baseline = CacheSetup(path=path)
    setups = {
        # Exactly 0, which needs no more than a chunk.
        "the same": replace(baseline, n_chunks=1),
        "floor": baseline.on_the_other_path(),
        **{cache: CacheSetup(f"*:{cache}", path=path) for cache in CACHES},
    }
    request = replace(request, baseline=baseline, policies=tuple(setups.values()))
    found = measured(programs, request, folder)
    return [row(cache, path, found[setup]) for cache, setup in setups.items()]


def row(cache: str, path: FeedPath, tokens: Sequence[TokenDivergence]) -> dict[str, Any]:
    """Sum up one cache on one path."""
    summary = summarize_divergence(tokens)
    if summary is None:
        raise SystemExit("the texts are too short: no token was scored")
    return {
        "cache": cache,
        "path": path,
        "n_tokens": summary.n_tokens,
        "n_blocks": summary.n_blocks,
        "mean": summary.mean,
        "interval": summary.interval,
        "top1": summary.top1.value,
        "standard_error_by_block": standard_errors(tokens),
    }


TIMED_POLICIES = (
    *("*:q8_0", "*:k=q8_0/v=q4_0", "*:q5_1", "*:q5_0", "*:iq4_nl", "*:q4_1", "*:q4_0"),
    *("0-10:q8_0,11-:q4_0", "0-10:q4_0,11-:q8_0", "*:k=q4_0/v=f16"),
)


def timed(programs: Path, model: Path, text: Path, n_threads: int, n_rounds: int) -> list[dict[str, Any]]:
    """Seconds of the whole program, loading included, the least of several rounds taken in turn.

    cpu_seconds: of all its threads, which other work on the machine hardly changes. The load alone is a
    policy on two tokens. passes: of n_tokens each, the baseline's among them.
    """
    ways: dict[str, dict[str, Any]] = {
        "load": {"policies": 1, "n_ctx": 4, "n_tokens": 1},
        "1 policy": {"policies": 1},
        "10 policies": {},
        "10 policies, contexts made for each chunk": {"n_contexts": 0},
    }
    if n_threads > 1:
        ways[f"10 policies, {n_threads} at the same time"] = {"n_jobs": n_threads}
    found = []
    sizes: dict[FeedPath, int] = {"prefill": N_CTX - 1 - N_CTX // 2, "decode": N_CTX // 8}
    for path, n_tokens in sizes.items():
        best = dict.fromkeys(ways, (math.inf, math.inf))
        for _ in range(n_rounds):
            for name, changes in ways.items():
                given = {"n_tokens": n_tokens, **changes}
                request = timed_request(model, text, path, n_threads, **given)
                begun, before = time.monotonic(), _cpu_seconds()
                with tempfile.TemporaryDirectory() as folder:
                    measured(programs, request, Path(folder))
                taken = time.monotonic() - begun, _cpu_seconds() - before
                best[name] = min(best[name][0], taken[0]), min(best[name][1], taken[1])
        found += [
            {
                "path": path,
                "way": name,
                "n_tokens": given.get("n_tokens", n_tokens),
                "passes": 1 + given.get("policies", len(TIMED_POLICIES)),
                "seconds": best[name][0],
                "cpu_seconds": best[name][1],
            }
            for name, given in ways.items()
        ]
    return found


def _cpu_seconds() -> float:
    """Of every process that was started from here and has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed_request(
    model: Path, text: Path, path: FeedPath, n_threads: int, policies: int = 10, **changes: Any
) -> DivergenceRequest:
    """Return a request for the first of the policies."""
    setups = tuple(CacheSetup(policy, path=path) for policy in TIMED_POLICIES[:policies])
    baseline = CacheSetup(path=path)
    request = DivergenceRequest(model, (text,), setups, baseline, n_threads=n_threads)
    return replace(request, **{"n_contexts": len(setups), **changes})


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
    parser.add_argument("--time-model", type=Path, metavar="FILE", help="a GGUF file to time ten policies on")
    parser.add_argument("--time-text", type=Path, metavar="FILE", help="a text for it")
    parser.add_argument("--threads", type=int, default=2, help="threads of what is timed (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of what is timed (%(default)s)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    build = read_info(options.programs.parent)
    if build is None:
        raise SystemExit(f"{options.programs} is no folder of programs that kvquant llama build has made")
    record = provenance("benchmarks/divergence.py", ("numpy", "scipy"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = write_documents(folder, options.documents)
        policies = tuple(CacheSetup(f"*:{cache}") for cache in CACHES[:1])
        request = DivergenceRequest(MODEL, texts, policies, parse_special=True, n_ctx=N_CTX, n_threads=1)
        record |= {
            "series_digest": build.series_digest,
            "n_ctx": N_CTX,
            "rows": [
                found
                for path in get_args(FeedPath)
                for found in rows(options.programs, request, path, folder)
            ],
            "peak_n_bytes": {
                "1 document": peak_n_bytes(options.programs, replace(request, texts=texts[:1]), folder),
                f"{len(texts)} documents": peak_n_bytes(options.programs, request, folder),
            },
        }
    if options.time_model is not None:
        record["timed"] = {
            "model": options.time_model.name,
            "n_threads": options.threads,
            "rows": timed(
                options.programs, options.time_model, options.time_text, options.threads, options.rounds
            ),
        }
    write_record(record, options.out)


if __name__ == "__main__":
    main()
