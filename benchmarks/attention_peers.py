"""Attention's share of prefill and decode beside peers, in one run: this series, stock, and ik_llama.cpp.

    python -m venv ik && ik/bin/pip install ik-llama-cpp-python==0.1.5
    python benchmarks/attention_peers.py run --model smollm2-135m --programs "$(kvquant llama build)" \\
        --ik ik/bin/python
    python benchmarks/attention_peers.py write   # the table of docs/attention.md, from the record

The share is the time of a token with `--depth` tokens in the cache, less that with none, each from the median
speed over the rounds. What builds do better or worse elsewhere (ik_llama.cpp repacks weights) is not in it.
Rounds go forwards and backwards through the builds. Stock is the same programs with GGML_KV_ATTN=0, which
computes what a stock build does, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from kvquant.assets.find import model_path
from kvquant.evals.speed import turns
from kvquant.files import write_atomic
from kvquant.processes.background import clean_environment
from kvquant.tables import NONE, Table, markdown, text
from marked_page import filled
from provenance import provenance, write_record

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/attention-peers.json"
PAGE = ROOT / "docs/attention.md"

BUILDS = ("patched", "stock", "ik_llama.cpp")
TYPES = ("f16", "q8_0", "q4_0")
PHASES = ("prefill", "decode")
N_PROMPT, N_GENERATE = 256, 32
N_TIMES = 3
"""How often each is timed in a run; the median counts."""
DEPTH = 4096


@dataclass(frozen=True)
class Timing:
    """Tokens per second of one phase in one run."""

    model: str
    build: str
    type: str
    round: int
    phase: str
    depth: int
    tokens_per_second: float


@dataclass(frozen=True)
class Machine:
    """What runs: our programs, a Python with ik_llama.cpp's wheel, and how many threads."""

    programs: Path
    ik: Path
    n_threads: int

    def argv(self, build: str, model: Path, type_name: str, depths: tuple[int, ...]) -> list[str]:
        """Return the command of one run."""
        sizes = ["--n-prompt", str(N_PROMPT), "--n-gen", str(N_GENERATE), "--threads", str(self.n_threads)]
        sizes += ["--repetitions", str(N_TIMES)]
        if build == "ik_llama.cpp":
            script = str(Path(__file__).with_name("ik_bench.py"))
            own = ["--model", str(model), "--type", type_name, "--depths", *map(str, depths)]
            return [str(self.ik), script, *own, *sizes]
        caches = ["--cache-type-k", type_name, "--cache-type-v", type_name, "--flash-attn", "1"]
        own = ["--model", str(model), *caches, "--n-depth", ",".join(map(str, depths))]
        return [str(self.programs / "llama-bench"), *own, *sizes, "--output", "jsonl"]

    def run(
        self, build: str, model: Path, type_name: str, depths: tuple[int, ...]
    ) -> Iterator[dict[str, Any]]:
        """Yield the timings of one run, in llama-bench's words."""
        added = {"GGML_KV_ATTN": "0"} if build == "stock" else {}
        done = subprocess.run(
            self.argv(build, model, type_name, depths),
            env=clean_environment(**added),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{build}, {type_name}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
        yield from (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))


def measure(machine: Machine, name: str, builds: Sequence[str], depth: int, n_rounds: int) -> list[Timing]:
    """Time every build and type, in turn."""
    model = model_path(name, say=lambda line: print(line, file=sys.stderr))
    arms = {f"{build}, {type_name}": (build, type_name) for type_name in TYPES for build in builds}
    found = []
    for number, label in turns(tuple(arms), n_rounds):
        build, type_name = arms[label]
        for row in machine.run(build, model, type_name, (0, depth)):
            phase = "decode" if row["n_gen"] else "prefill"
            at = (phase, int(row["n_depth"]), median(row["samples_ts"]))
            found.append(Timing(name, build, type_name, number, *at))
        print(f"{name}: round {number}, {label}", file=sys.stderr)
    return found


def share(timings: list[Timing], model: str, build: str, type_name: str, phase: str) -> float:
    """Return attention's share of a token, milliseconds."""
    rates: dict[int, list[float]] = {}
    for one in timings:
        if (one.model, one.build, one.type, one.phase) == (model, build, type_name, phase):
            rates.setdefault(one.depth, []).append(one.tokens_per_second)
    return 1e3 / median(rates[max(rates)]) - 1e3 / median(rates[0])


def table(timings: list[Timing]) -> Table:
    """Return the share by model, phase and type, and the ratio of each peer to ours."""
    builds = [build for build in BUILDS if any(one.build == build for one in timings)]
    peers = [build for build in builds if build != "patched"]
    rows = []
    for model in dict.fromkeys(one.model for one in timings):
        for phase in PHASES:
            for type_name in TYPES:
                found = {build: share(timings, model, build, type_name, phase) for build in builds}
                ratios = (_ratio(found[peer], found["patched"]) for peer in peers)
                times = (f"{found[build]:.3g}" for build in builds)
                rows.append((model, phase, type_name, *times, *ratios))
    columns = (*(f"{build}, ms" for build in builds), *(f"{peer} / patched" for peer in peers))
    return Table(("model", "phase", "cache", *columns), tuple(rows))


def _ratio(theirs: float, ours: float) -> str:
    # a share that the noise of two timings swallows has no ratio
    return f"{theirs / ours:.2f}" if ours > 0 and theirs > 0 else NONE


def page(record: dict[str, Any]) -> str:
    """Return docs/attention.md with the table of a record."""
    rows = table([Timing(**one) for one in record["timings"]])
    return filled(PAGE.read_text(encoding="utf-8"), {"attention peers": markdown(rows)})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure")
    running.add_argument("--model", action="append", required=True, metavar="NAME", help="may be given again")
    running.add_argument(
        "--programs", type=Path, required=True, metavar="DIR", help="of the patched llama.cpp"
    )
    running.add_argument("--ik", type=Path, required=True, metavar="PYTHON", help="with ik-llama-cpp-python")
    running.add_argument(
        "--build", choices=BUILDS, action="append", help="one of them; may be given again (all)"
    )
    running.add_argument("--depth", type=int, default=DEPTH, help="(%(default)s)")
    running.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    running.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    commands.add_parser("write", help="put the table into the page")
    options = parser.parse_args()
    if options.command == "write":
        write_atomic(PAGE, page(json.loads(RECORD.read_text(encoding="utf-8"))))
        return
    machine = Machine(options.programs, options.ik, options.threads)
    made = provenance("benchmarks/attention_peers.py", ())
    build = json.loads((options.programs.parent / "build-info.json").read_text(encoding="utf-8"))
    made |= {"series": build["series_digest"], "n_threads": options.threads, "depth": options.depth}
    builds = options.build or BUILDS
    found = [
        one for name in options.model for one in measure(machine, name, builds, options.depth, options.rounds)
    ]
    write_record({**made, "timings": [asdict(one) for one in found]}, RECORD)
    print(text(table(found)))


if __name__ == "__main__":
    main()
