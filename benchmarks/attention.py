"""Attention over the cache: the patched llama-server against the stock one, in turn, in tokens per second.

Models are those of `kvquant models` whose layers all have full attention, and random ones: two whose other
parts cost little, and one with an embedding as wide as its heads together. A slot is restored to each depth,
then timed are batches of further prompt tokens and the decoding behind them. Every round runs all types on
both builds in turn, the next round the other way round. Without --stock the patched programs with
GGML_KV_ATTN=0 stand for it: they compute what a stock build does, bit for bit. By default each server has
one thread and its processor time counts, so that waiting for other programs does not; --clock wall takes the
server's own timings, any number of threads, and needs an idle machine. The program ends before it has run
for --seconds; the same command resumes.

    python benchmarks/attention.py --patched "$(kvquant llama build)" --model qwen2.5-coder-0.5b \\
        --deepest 32768 --clock wall --threads 2 \\
        --out benchmarks/results/attention-real.json --figure docs/figures/attention.svg
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
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from attention_figure import write_figure
from attention_op import PROGRAM, read_bandwidth
from attention_summary import summarize
from attention_tables import all_tables, real_parts
from deep_slot import write_deep_slot
from kvquant.assets.find import model_path
from kvquant.files import write_atomic
from kvquant.formats.registry import get_format
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.model.architectures import read_shape
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedPolicy, parse_policy
from marked_page import filled
from provenance import provenance, write_record
from write_random_gguf import RandomModel, write_random_gguf

PAGE = Path(__file__).resolve().parent.parent / "docs/attention.md"
RANDOM_MODELS = {
    "gqa2-128": RandomModel(n_layer=28, n_head=16, n_head_kv=8, head_dim=128, width=256),
    "gqa8-256": RandomModel(n_layer=28, n_head=16, n_head_kv=2, head_dim=256, width=256),
    "gqa2-128-wide": RandomModel(n_layer=28, n_head=16, n_head_kv=8, head_dim=128),
}
REAL_MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
PAIRS = (
    *(("stock", "f16"), ("patched", "f16"), ("stock", "q8_0"), ("patched", "q8_0")),
    *(("stock", "q4_0"), ("patched", "q4_0")),
)
"""Build and policy in the order of a round; the last one is the patched build with a mixed policy."""

MIXED_OF_RANDOM, MIXED_OF_REAL = "0-10:q8_0,11-27:q4_0", "*:k=q8_0/v=q4_0"

DEPTHS = {32768: 8, 8192: 4, 2048: 8, 512: 16, 0: 32}
"""Depth to how many tokens are decoded there."""

BATCHES = {32768: (4, 256), 8192: (4, 256), 2048: (4, 32, 256), 512: (4, 256), 0: (4, 32, 256)}
"""Depth to the prompt tokens that are timed there, each number in one batch."""

TOO_SLOW = ((8192, 256), (32768, 256))
"""Depth and batch that stock is not asked for with a quantized cache: it takes more than a minute."""

N_CTX_BEHIND = 512
BANDWIDTH_MIB = 512


Clock = Callable[[], float] | None
"""Seconds, or None for the timings that the server reports."""


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
    """``n`` tokens of every model's vocabulary, all of which differ from those of another ``first``."""
    return [first + i % 20 for i in range(n)]


SLOT_TOKENS = filler(10, max(DEPTHS))


def measure_point(
    server: LlamaServer, clock: Clock, depth: int, batches: Sequence[int], n_decode: int
) -> Point:
    """Time batches behind the first ``depth`` tokens of the slot, and decoding behind the first batch."""
    speeds = {}
    for number, n_batch in enumerate(batches):
        prompt = SLOT_TOKENS[:depth] + filler(40 + 20 * number, n_batch)
        speeds[n_batch] = n_batch / read_seconds(server, clock, prompt, n_batch)
        if number == 0:
            decode = n_decode / decode_seconds(server, clock, prompt, n_decode)
    return Point(depth, speeds, decode)


def read_seconds(server: LlamaServer, clock: Clock, prompt: list[int], n_read: int) -> float:
    """Seconds of reading the last ``n_read`` tokens of the prompt in one batch."""
    seconds, times = timed(server, clock, prompt, n_read, 1)
    return float(times["prompt_ms"]) / 1e3 if seconds is None else seconds


def decode_seconds(server: LlamaServer, clock: Clock, prompt: list[int], n_decode: int) -> float:
    """Seconds of ``n_decode`` tokens, one after the other.

    The last token of the prompt is read again, which the server counts as prompt; what is sampled last is not
    read.
    """
    n_predict = n_decode + 1 if clock is None else n_decode
    seconds, times = timed(server, clock, prompt, 1, n_predict)
    return float(times["predicted_ms"]) / 1e3 if seconds is None else seconds


def timed(
    server: LlamaServer, clock: Clock, prompt: list[int], n_read: int, n_predict: int
) -> tuple[float | None, dict[str, Any]]:
    """Return the clock's seconds of a completion and the server's timings."""
    start = clock() if clock else 0.0
    times = server.completion(prompt, n_predict, ignore_eos=True, cache_prompt=True)["timings"]
    seconds = clock() - start if clock else None
    if times["prompt_n"] != n_read or times["predicted_n"] != n_predict:
        raise SystemExit(f"attention: error: asked for {n_read} and {n_predict} tokens, got {times}")
    return seconds, times


def processor_clock() -> float:
    """Processor seconds of the server that this process runs, all its threads together."""
    watchdog = children(os.getpid())[-1]
    tasks = Path(f"/proc/{children(watchdog)[0]}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


CLOCKS: dict[str, Clock] = {"processor": processor_clock, "wall": None}


@dataclass(frozen=True)
class Bench:
    """What stays the same for all runs. stock: None for the patched programs without their attention."""

    patched: Path
    stock: Path | None
    deepest: int
    n_threads: int
    clock: Clock

    def options(self, run: Run, model: Path, arch: str) -> tuple[Path, ServerOptions]:
        """Return the folder of programs and the options of the server of one run."""
        n_ctx = self.deepest + N_CTX_BEHIND
        # a server refuses contexts beyond those of the training; how fast it is does not depend on that
        longer = f"{arch}.context_length=int:{n_ctx}"
        extra = ("--flash-attn", "on", "--ubatch-size", "512", "--override-kv", longer)
        options = ServerOptions(model, n_ctx, n_threads=self.n_threads, extra=extra)
        if ":" in run.policy:
            options = replace(options, kv_layers=run.policy)
        else:
            options = replace(options, k_type=run.policy, v_type=run.policy)
        if run.build == "patched":
            return self.patched, options
        return self.stock or self.patched, replace(options, kv_attention=self.stock is not None)


def measure(bench: Bench, run: Run, model: Path, arch: str, slot: Path) -> list[Point]:
    """Start a server, restore ``slot``, and measure every depth from the deepest on."""
    programs, options = bench.options(run, model, arch)
    with LlamaServer(programs, options) as server:
        (server.slot_folder / "slot").symlink_to(slot.resolve())
        server.restore_slot()
        server.completion(SLOT_TOKENS[: bench.deepest], 1)  # the first run of anything waits for memory
        slow = run.build == "stock" and run.policy != "f16"
        return [
            measure_point(
                server,
                bench.clock,
                depth,
                [n for n in BATCHES[depth] if not (slow and (depth, n) in TOO_SLOW)],
                n_decode,
            )
            for depth, n_decode in DEPTHS.items()
            if depth <= bench.deepest
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


def find_model(name: str, folder: Path) -> Path:
    """The GGUF of a model; a random one is written into ``folder``."""
    if name in RANDOM_MODELS:
        return write_random_gguf(folder / f"{name}.gguf", RANDOM_MODELS[name])
    return model_path(name, say=lambda line: print(line, file=sys.stderr))


def mixed_of(name: str) -> str:
    return MIXED_OF_RANDOM if name in RANDOM_MODELS else MIXED_OF_REAL


def describe_model(name: str, path: Path) -> dict[str, Any]:
    """A random model's dimensions, the bytes of the file, and those of one token's K and V in the cache."""
    shape = read_shape(path)
    random = asdict(RANDOM_MODELS[name]) if name in RANDOM_MODELS else {}
    described = {key: value for key, value in random.items() if value is not None}
    policies = ("f16", "q8_0", "q4_0", mixed_of(name))
    cache = {policy: cache_bytes(shape, resolve(policy, shape)) for policy in policies}
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
            pairs = (*PAIRS, ("patched", mixed_of(model)))
            for build, policy in pairs if index % 2 == 0 else reversed(pairs):
                run = Run(index, model, build, policy)
                if run not in done:
                    yield run


def perform(bench: Bench, run: Run, folder: Path) -> dict[str, Any]:
    """Measure ``run`` and return its entry in the record."""
    model = find_model(run.model, folder)
    shape = read_shape(model)
    slot = folder / "slot"
    write_deep_slot(slot, shape, resolve(run.policy, shape), SLOT_TOKENS[: bench.deepest])
    entry = {
        **asdict(run),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "bandwidth": float(read_bandwidth(bench.patched / PROGRAM, BANDWIDTH_MIB, bench.n_threads)),
    }
    with OthersShare() as others:
        points = measure(bench, run, model, shape.arch, slot)
    decode = "  ".join(f"{point.depth}: {point.decode:.1f}" for point in points)
    print(f"{run} decode {decode}  others {others.share:.0%}", file=sys.stderr, flush=True)
    return {**entry, "others_share": round(others.share, 3), "points": [asdict(point) for point in points]}


def start_record(bench: Bench, folder: Path, models: Sequence[str]) -> dict[str, Any]:
    record = provenance("benchmarks/attention.py", ("numpy", "gguf"))
    kept = ("commit", "series_digest", "patches", "target", "cmake_args", "compiler")
    record["builds"] = {
        arm: {key: json.loads((programs.parent / "build-info.json").read_text())[key] for key in kept}
        for arm, programs in (("stock", bench.stock or bench.patched), ("patched", bench.patched))
    }
    record["models"] = {name: describe_model(name, find_model(name, folder)) for name in models}
    return {**record, "runs": []}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patched", type=Path, required=True, metavar="DIR", help="folder of the programs")
    parser.add_argument("--stock", type=Path, metavar="DIR", help="folder of stock ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long one piece may take")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="processor", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    known = (*RANDOM_MODELS, *REAL_MODELS)
    parser.add_argument("--model", choices=known, action="append", help="one model; may be repeated")
    parser.add_argument("--deepest", type=int, choices=DEPTHS, default=8192, help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON, continued when there")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the result as SVG")
    parser.add_argument(
        "--page", action="store_true", help="put the tables of real models into docs/attention.md"
    )
    arguments = parser.parse_args()
    if arguments.clock == "processor" and arguments.threads != 1:
        parser.error("--clock processor adds up threads, also those that wait: it takes --threads 1")
    models = arguments.model or tuple(RANDOM_MODELS)
    bench = Bench(
        arguments.patched, arguments.stock, arguments.deepest, arguments.threads, CLOCKS[arguments.clock]
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.out.exists():
            record = json.loads(arguments.out.read_text())
        else:
            record = {
                **start_record(bench, folder, models),
                "clock": arguments.clock,
                "n_threads": arguments.threads,
            }
        began, longest = time.monotonic(), 0.0
        for run in runs_to_do(record, models, arguments.rounds):
            start = time.monotonic()
            if start - began + longest > arguments.seconds:
                break
            entry = perform(bench, run, folder)
            longest = max(longest, time.monotonic() - start)
            record["runs"].append(entry)
            record["summary"] = summarize(record)
            write_record(record, arguments.out)
    if arguments.figure:
        write_figure(record, arguments.figure)
    if arguments.page:
        write_atomic(PAGE, filled(PAGE.read_text(encoding="utf-8"), real_parts(record)))
    for name, table in all_tables(record).items():
        print(f"{name}\n\n{table}")


if __name__ == "__main__":
    main()
