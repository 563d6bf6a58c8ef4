"""What an exact change of K costs: prefill and decode under one policy, with and without a transform.

One llama-server for each arm stays up, with a slot of its own for each depth; a round asks all of them for
the same batches in turn, the next round the other way round. Servers have one thread and their processor time
counts, so that waiting for other programs does not. A transform's numbers do not matter here: they are
random.

    python benchmarks/transform_cost.py --model SmolLM2-135M.gguf --programs "$(kvquant llama build)" \\
        --out benchmarks/results/transform-cost.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.model.architectures import read_shape
from kvquant.model.gguf_file import open_model
from kvquant.transform import KVTransform, LayerTransform, write_transform
from kvquant.transform.for_model import model_id
from provenance import provenance, write_record

ARMS = ("none", "diagonal", "matrix")
ALLOWED = {"diagonal": 1.02, "matrix": 1.05}
DEPTHS = (0, 4096)
N_BATCH = 512
N_DECODE = 96
POLICY = "*:q4_0"


@dataclass(frozen=True)
class Timing:
    """Processor seconds of one arm at one depth: of a batch of prompt tokens, and of decoded ones."""

    round: int
    arm: str
    depth: int
    prefill: float
    decode: float


def write_random(path: Path, model: Path, kind: str) -> None:
    """Write a transform of every layer that keeps keys."""
    shape, rng, layers = read_shape(model), np.random.default_rng(0), []
    for number in shape.kv_layers:
        size = (shape.layers[number].n_head_kv, shape.layers[number].head_dim_k)
        centre, scale = 0.1 * rng.standard_normal(size), np.exp(0.1 * rng.standard_normal(size))
        mixing = np.eye(size[1]) + 0.2 / np.sqrt(size[1]) * rng.standard_normal((*size, size[1]))
        forward = scale if kind == "diagonal" else scale[:, None] * mixing
        rounded = [values.astype(np.float16).astype(np.float32) for values in (centre, forward)]
        layers.append(LayerTransform(number, rounded[0], rounded[1]))
    write_transform(KVTransform(model_id(open_model(model)), tuple(layers)), path)


def seconds(server: LlamaServer, slot: int, prompt: list[int], n_read: int, n_predict: int) -> float:
    """Processor seconds of a completion that reads the last ``n_read`` tokens of the prompt."""
    before = server.cpu_seconds()
    answer = server.completion(prompt, n_predict, id_slot=slot, ignore_eos=True, cache_prompt=True)
    after, times = server.cpu_seconds(), answer["timings"]
    if (times["prompt_n"], times["predicted_n"]) != (n_read, n_predict) or before is None or after is None:
        raise SystemExit(f"transform_cost: error: asked for {n_read} and {n_predict} tokens, got {times}")
    return after - before


def prefix(depth: int) -> list[int]:
    return [100 + i % 1000 for i in range(depth)]


def measure(server: LlamaServer, depth: int, number: int) -> tuple[float, float]:
    """A batch behind the first ``depth`` tokens, other ones in every round, and decoding behind it."""
    slot = DEPTHS.index(depth)
    prompt = prefix(depth) + [2000 + 700 * number + i for i in range(N_BATCH)]
    prefill = seconds(server, slot, prompt, N_BATCH, 1)
    # The last token of the prompt is read again; what is sampled last is not read.
    return prefill, seconds(server, slot, prompt, 1, N_DECODE)


def summarize(timings: list[Timing]) -> list[dict[str, Any]]:
    """Of each arm and depth: the median over rounds of its seconds by those without a transform."""
    rows = []
    for arm in ARMS[1:]:
        for depth in DEPTHS:
            of = {(t.round, t.arm): t for t in timings if t.depth == depth}
            n_rounds = 1 + max(number for number, _ in of)
            row: dict[str, Any] = {"arm": arm, "depth": depth, "allowed": ALLOWED[arm]}
            for phase in ("prefill", "decode"):
                ratios = sorted(
                    getattr(of[number, arm], phase) / getattr(of[number, "none"], phase)
                    for number in range(n_rounds)
                )
                row[phase] = {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="GGUF")
    parser.add_argument("--programs", type=Path, required=True, metavar="DIR", help="of a patched build")
    parser.add_argument("--rounds", type=int, default=6, help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    arguments = parser.parse_args()
    record = provenance("benchmarks/transform_cost.py", ("numpy", "gguf"))
    info = json.loads((arguments.programs.parent / "build-info.json").read_text())
    record["build"] = {key: info[key] for key in ("series_digest", "target", "compiler")}
    record |= {"model": arguments.model.name, "policy": POLICY, "n_batch": N_BATCH, "n_decode": N_DECODE}
    timings: list[Timing] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers: dict[str, LlamaServer] = {}
        for arm in ARMS:
            extra: tuple[str, ...] = ("--flash-attn", "on", "--no-kv-unified")
            if arm != "none":
                write_random(Path(folder) / arm, arguments.model, arm)
                extra = (*extra, "--kv-transform", f"{folder}/{arm}")
            n_ctx = len(DEPTHS) * (max(DEPTHS) + 1024)
            options = ServerOptions(
                arguments.model, n_ctx, len(DEPTHS), kv_layers=POLICY, n_threads=1, extra=extra
            )
            servers[arm] = stack.enter_context(LlamaServer(arguments.programs, options))
            for slot, depth in enumerate(DEPTHS):
                servers[arm].completion([*prefix(depth), 1], 1, id_slot=slot)
        for number in range(arguments.rounds):
            for depth in DEPTHS:
                for arm in ARMS if number % 2 else reversed(ARMS):
                    timings.append(Timing(number, arm, depth, *measure(servers[arm], depth, number)))
    record["timings"] = [vars(timing) for timing in timings]
    record["summary"] = summarize(timings)
    write_record(record, arguments.out)
    print(json.dumps(record["summary"], indent=1))


if __name__ == "__main__":
    main()
