"""Attention over the cache: the patched llama-server against the stock one, in turn, in tokens per second.

Random models: two whose other parts cost little, and one with an embedding as wide as its heads together. A
slot is restored to each depth, then timed are batches of further prompt tokens and the decoding behind them.
Every round runs all types on both builds in turn, the next round the other way round. By default each server
has one thread and its processor time counts, so that waiting for other programs does not; --clock wall takes
any number of threads and needs an idle machine. The program ends before it has run for --seconds; the same
command resumes.

    python benchmarks/attention.py --patched "$(kvquant llama build)" \\
        --stock "$(kvquant llama build --stock --program llama-server)" \\
        --out benchmarks/results/attention.json --figure docs/figures/attention.svg
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from attention_figure import write_figure
from attention_op import PROGRAM, read_bandwidth
from attention_summary import summarize
from attention_tables import all_tables
from deep_slot import write_deep_slot
from kvquant.formats.registry import get_format
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.model.architectures import read_shape
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedPolicy, parse_policy
from provenance import provenance, write_record
from write_random_gguf import RandomModel, write_random_gguf

MODELS = {
    "gqa2-128": RandomModel(n_layer=28, n_head=16, n_head_kv=8, head_dim=128, width=256),
    "gqa8-256": RandomModel(n_layer=28, n_head=16, n_head_kv=2, head_dim=256, width=256),
    "gqa2-128-wide": RandomModel(n_layer=28, n_head=16, n_head_kv=8, head_dim=128),
}
MIXED = "0-10:q8_0,11-27:q4_0"
RUNS = (
    *(("stock", "f16"), ("patched", "f16"), ("stock", "q8_0"), ("patched", "q8_0")),
    *(("stock", "q4_0"), ("patched", "q4_0"), ("patched", MIXED)),
)
"""Build and policy in the order of a round; a stock build has no mixed policies."""

DEPTHS = {8192: 4, 2048: 8, 512: 16, 0: 32}
"""Depth to how many tokens are decoded there."""

BATCHES = {8192: (4, 256), 2048: (4, 32, 256), 512: (4, 256), 0: (4, 32, 256)}
"""Depth to the prompt tokens that are timed there, each number in one batch."""

TOO_SLOW = (8192, 256)
"""Depth and batch that stock is not asked for with a quantized cache: it takes more than a minute."""

N_CTX = 8192 + 512
BANDWIDTH_MIB = 512


Clock = Callable[[], float]


@dataclass(frozen=True)
class Run:
    """One server to be measured. round: counted from 0."""

    round: int
    model: str
    build: str
    policy: str


@dataclass(frozen=True)
class Point:
    """Speeds at one depth. batches: tokens in the batch -> tokens per second; decode: tokens per second."""

    depth: int
    batches: dict[int, float]
    decode: float


def filler(first: int, n: int) -> list[int]:
    """``n`` tokens of the random models' vocabulary, all of which differ from those of another ``first``."""
    return [first + i % 20 for i in range(n)]


SLOT_TOKENS = filler(10, max(DEPTHS))


def measure_point(
    server: LlamaServer, clock: Clock, depth: int, batches: Sequence[int], n_decode: int
) -> Point:
    """Time batches behind the first ``depth`` tokens of the slot, and decoding behind the first batch."""
    speeds = {}
    for number, n_batch in enumerate(batches):
        prompt = SLOT_TOKENS[:depth] + filler(40 + 20 * number, n_batch)
        speeds[n_batch] = n_batch / timed(server, clock, prompt, n_batch, 1)
        if number == 0:
            # The last token of the prompt is read again; what is sampled last is not read.
            decode = n_decode / timed(server, clock, prompt, 1, n_decode)
    return Point(depth, speeds, decode)


def timed(server: LlamaServer, clock: Clock, prompt: list[int], n_read: int, n_predict: int) -> float:
    """Seconds of a completion that reads the last ``n_read`` tokens of the prompt."""
    start = clock()
    times = server.completion(prompt, n_predict, ignore_eos=True, cache_prompt=True)["timings"]
    seconds = clock() - start
    if times["prompt_n"] != n_read or times["predicted_n"] != n_predict:
        raise SystemExit(f"attention: error: asked for {n_read} and {n_predict} tokens, got {times}")
    return seconds


def processor_clock() -> float:
    """Processor seconds of the server that this process runs, all its threads together."""
    watchdog = children(os.getpid())[-1]
    tasks = Path(f"/proc/{children(watchdog)[0]}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


CLOCKS: dict[str, Clock] = {"processor": processor_clock, "wall": time.monotonic}


def measure(programs: Path, run: Run, model: Path, slot: Path, n_threads: int, clock: Clock) -> list[Point]:
    """Start a server, restore ``slot``, and measure every depth from the deepest on."""
    types = {"kv_layers": run.policy} if ":" in run.policy else {"k_type": run.policy, "v_type": run.policy}
    extra = ("--flash-attn", "on", "--ubatch-size", "512")
    options = replace(ServerOptions(model, N_CTX, n_threads=n_threads, extra=extra), **types)
    with LlamaServer(programs, options) as server:
        (server.slot_folder / "slot").symlink_to(slot.resolve())
        server.restore_slot()
        server.completion(SLOT_TOKENS, 1)  # the first run of anything waits for memory
        slow = run.build == "stock" and run.policy != "f16"
        return [
            measure_point(
                server,
                clock,
                depth,
                [n for n in BATCHES[depth] if not (slow and (depth, n) == TOO_SLOW)],
                n_decode,
            )
            for depth, n_decode in DEPTHS.items()
        ]


class OthersShare:
    """The share of all processors' time that went to other programs, or to other machines on the same host,
    in a with block that waits for every program it starts.
    """

    def __enter__(self) -> OthersShare:
        self._before = (time.monotonic(), busy_seconds(), own_seconds())
        return self

    def __exit__(self, *_: object) -> None:
        began, busy, own = self._before
        others = busy_seconds() - busy - (own_seconds() - own)
        self.share = others / (time.monotonic() - began) / (os.cpu_count() or 1)


def busy_seconds() -> float:
    """Seconds that all processors were not idle, those given to other virtual machines included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def resolve(policy: str, shape: ModelShape) -> ResolvedPolicy:
    return parse_policy(policy if ":" in policy else f"*:{policy}").resolve(shape)


def describe_model(model: RandomModel, shape: ModelShape, path: Path) -> dict[str, Any]:
    """The model, the bytes of its file, and those of one token's K and V in the cache."""
    described = {key: value for key, value in asdict(model).items() if value is not None}
    cache = {policy: cache_bytes(shape, resolve(policy, shape)) for policy in ("f16", "q8_0", "q4_0", MIXED)}
    return {**described, "file_bytes": path.stat().st_size, "cache_bytes_per_token": cache}


def cache_bytes(shape: ModelShape, policy: ResolvedPolicy) -> int:
    return sum(
        get_format(layer.k_type).n_bytes(shape.layers[layer.layer].n_embd_k)
        + get_format(layer.v_type).n_bytes(shape.layers[layer.layer].n_embd_v)
        for layer in policy.layers
    )


def runs_to_do(record: dict[str, Any], models: Sequence[str], n_rounds: int) -> Iterator[Run]:
    """Yield what is not in the record yet, round by round, every second one backwards."""
    done = {Run(*(entry[field.name] for field in fields(Run))) for entry in record["runs"]}
    for index in range(n_rounds):
        for model in models:
            for build, policy in RUNS if index % 2 == 0 else reversed(RUNS):
                run = Run(index, model, build, policy)
                if run not in done:
                    yield run


def perform(run: Run, builds: dict[str, Path], folder: Path, n_threads: int, clock: str) -> dict[str, Any]:
    """Measure ``run`` and return its entry in the record."""
    model = write_random_gguf(folder / f"{run.model}.gguf", MODELS[run.model])
    shape = read_shape(model)
    slot = folder / "slot"
    write_deep_slot(slot, shape, resolve(run.policy, shape), SLOT_TOKENS)
    entry = {
        **asdict(run),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "bandwidth": float(read_bandwidth(builds["patched"] / PROGRAM, BANDWIDTH_MIB, n_threads)),
    }
    with OthersShare() as others:
        points = measure(builds[run.build], run, model, slot, n_threads, CLOCKS[clock])
    decode = "  ".join(f"{point.depth}: {point.decode:.1f}" for point in points)
    print(f"{run} decode {decode}  others {others.share:.0%}", file=sys.stderr, flush=True)
    return {**entry, "others_share": round(others.share, 3), "points": [asdict(point) for point in points]}


def start_record(builds: dict[str, Path], folder: Path, models: Sequence[str]) -> dict[str, Any]:
    record = provenance("benchmarks/attention.py", ("numpy", "gguf"))
    kept = ("commit", "series_digest", "patches", "target", "cmake_args", "compiler")
    record["builds"] = {
        arm: {key: json.loads((programs.parent / "build-info.json").read_text())[key] for key in kept}
        for arm, programs in builds.items()
    }
    record["models"] = {}
    for name in models:
        model = MODELS[name]
        path = write_random_gguf(folder / f"{name}.gguf", model)
        record["models"][name] = describe_model(model, read_shape(path), path)
    return {**record, "runs": []}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patched", type=Path, required=True, metavar="DIR", help="folder of the programs")
    parser.add_argument("--stock", type=Path, required=True, metavar="DIR", help="folder of stock ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long one piece may take")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="processor", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--model", choices=tuple(MODELS), action="append", help="one model; may be repeated")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON, continued when there")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the result as SVG")
    arguments = parser.parse_args()
    if arguments.clock == "processor" and arguments.threads != 1:
        parser.error("--clock processor adds up threads, also those that wait: it takes --threads 1")
    builds = {"stock": arguments.stock, "patched": arguments.patched}
    models = arguments.model or tuple(MODELS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.out.exists():
            record = json.loads(arguments.out.read_text())
        else:
            record = {
                **start_record(builds, folder, models),
                "clock": arguments.clock,
                "n_threads": arguments.threads,
            }
        began, longest = time.monotonic(), 0.0
        for run in runs_to_do(record, models, arguments.rounds):
            start = time.monotonic()
            if start - began + longest > arguments.seconds:
                break
            entry = perform(run, builds, folder, record["n_threads"], record["clock"])
            longest = max(longest, time.monotonic() - start)
            record["runs"].append(entry)
            record["summary"] = summarize(record)
            write_record(record, arguments.out)
    if arguments.figure:
        write_figure(record, arguments.figure)
    for name, table in all_tables(record).items():
        print(f"{name}\n\n{table}")


if __name__ == "__main__":
    main()
