#!/usr/bin/env python3
"""Predict how fast an RK3588 decodes, by model, cache and depth; on a board, put measurements beside it.

    tools/predict_rk.py write      # benchmarks/results/decode-rk3588.json and the table in docs/rk3588.md
    tools/predict_rk.py measure --programs build/rk3588/bin --model qwen2.5-coder-0.5b

A token reads all weights once, and in every layer the cache rows that it sees. Weights take their bytes
over the memory's speed. A layer's cache takes the longer of its bytes over that speed and its cycles
(attention_cycles_rk.py) shared by four cores. Products of weights, norms and sampling are left out, so this
is the most that can be hoped for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from attention_op import PROGRAM, read_bandwidth
from kvquant.assets.find import model_path
from kvquant.documents import from_document
from kvquant.errors import KVQuantError, LlamaError
from kvquant.evals.speed import BenchOptions, SpeedRound, run_rounds, speeds_of
from kvquant.files import write_atomic
from kvquant.formats.registry import get_format
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import open_model
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy
from kvquant.tables import NONE, Table, markdown, text
from marked_page import filled

ROOT = Path(__file__).resolve().parent.parent
CYCLES = ROOT / "benchmarks/results/attention-cycles-rk3588.json"
RECORD = ROOT / "benchmarks/results/decode-rk3588.json"
PAGE = ROOT / "docs/rk3588.md"

N_CORES = 4
GHZ = 2.3
"""Of the Cortex-A76 in an RK3588: 2.2 to 2.4, by chip."""
BYTES_PER_SECOND = (17e9, 25e9)
"""What such boards' memory gives to reads, from the slowest to the fastest reported."""
DEPTHS = (0, 2048, DEEP := 8192)
POLICIES = {
    "f16": ("f16", "f16"),
    "q8_0": ("q8_0", "q8_0"),
    "k8v4": ("q8_0", "q4_0"),
    "q4_0": ("q4_0", "q4_0"),
    "tq3": ("tq3", "tq3"),
}
BANDWIDTH_MIB = 256
N_ROUNDS = 3


@dataclass(frozen=True)
class Board:
    """What decides: cores, their clock, and how fast they read memory together."""

    bytes_per_second: float
    ghz: float = GHZ
    n_cores: int = N_CORES


@dataclass(frozen=True)
class LayerWork:
    """What one token does in some layers that are alike, for each cache row that it sees.

    window: rows that it sees at most, 0 for all. n_bytes: of K and V. cycles: of all query heads.
    """

    n_layers: int
    window: int
    n_bytes: int
    cycles: float


@dataclass(frozen=True)
class Decoding:
    """One model with one cache. kernels: patched or stock. weights: bytes that a token reads."""

    model: str
    policy: str
    kernels: str
    weights: int
    layers: tuple[LayerWork, ...]

    def seconds(self, depth: int, board: Board) -> float:
        """Seconds a token takes with so many in the cache."""
        cache = 0.0
        for layer in self.layers:
            n_rows = min(depth, layer.window) if layer.window else depth
            reading = layer.n_bytes / board.bytes_per_second
            products = layer.cycles / (board.n_cores * board.ghz * 1e9)
            cache += layer.n_layers * n_rows * max(reading, products)
        return self.weights / board.bytes_per_second + cache

    def bound(self, board: Board) -> str:
        """What takes longer in a layer: reading its cache or its products."""
        layer = self.layers[0]
        reading = layer.n_bytes / board.bytes_per_second
        return "memory" if reading > layer.cycles / (board.n_cores * board.ghz * 1e9) else "products"


def weight_bytes(model: str) -> tuple[ModelShape, int]:
    """Return a model's shape, and the bytes a token reads: all but the embeddings, if these are apart."""
    opened = open_model(model_path(model, say=lambda line: print(line, file=sys.stderr)))
    tensors = {tensor.name: tensor.n_bytes or 0 for shard in opened.shards for tensor in shard.tensors}
    apart = tensors.get("token_embd.weight", 0) if "output.weight" in tensors else 0
    return shape_of(opened), sum(tensors.values()) - apart


def decodings(cycles: dict[str, Any]) -> list[Decoding]:
    """Return every case of the record of cycles, with the bytes of its model. Needs the models' files."""
    found = []
    for model in dict.fromkeys(one["model"] for one in cycles["cycles"]):
        shape, weights = weight_bytes(model)
        for kernels in ("patched", "stock"):
            for policy, (k_type, v_type) in POLICIES.items():
                case = next(
                    (
                        one
                        for one in cycles["cycles"]
                        if (one["model"], one["kernels"], one["k_type"], one["v_type"])
                        == (model, kernels, k_type, v_type)
                    ),
                    None,
                )
                if case is not None:
                    layers = _layers(shape, k_type, v_type, case["cycles"])
                    found.append(Decoding(model, policy, kernels, weights, layers))
    return found


def _layers(shape: ModelShape, k_type: str, v_type: str, cycles: float) -> tuple[LayerWork, ...]:
    """The layers that keep a cache, those of the same window together, those that see all first."""
    kept = [shape.layers[number] for number in shape.kv_layers]
    first = kept[0]
    if len({(one.n_head, one.n_head_kv, one.head_dim_k, one.head_dim_v) for one in kept}) > 1:
        raise KVQuantError(f"the layers of {shape.name} differ in heads, which the cycles are not known for")
    n_bytes = first.n_head_kv * (
        get_format(k_type).n_bytes(first.head_dim_k) + get_format(v_type).n_bytes(first.head_dim_v)
    )
    windows = sorted({one.window for one in kept})
    return tuple(
        LayerWork(sum(one.window == window for one in kept), window, n_bytes, first.n_head * cycles)
        for window in windows
    )


def table(found: Sequence[Decoding]) -> Table:
    """Return tokens per second by model, cache and depth, from the slower memory to the faster."""
    boards = tuple(Board(speed) for speed in BYTES_PER_SECOND)
    stock = {(one.model, one.policy): one for one in found if one.kernels == "stock"}
    rows = []
    for one in found:
        if one.kernels == "stock":
            continue
        rates = [_span([1 / one.seconds(depth, board) for board in boards]) for depth in DEPTHS]
        other = stock.get((one.model, one.policy))
        gain = (
            NONE if other is None else _span([other.seconds(DEEP, b) / one.seconds(DEEP, b) for b in boards])
        )
        bound = ", then ".join(dict.fromkeys(one.bound(board) for board in boards))
        rows.append((one.model, one.policy, *rates, gain, bound))
    at_depths = (f"tokens/s at depth {depth}" for depth in DEPTHS)
    return Table(("model", "cache", *at_depths, "times stock", "cache is bound by"), tuple(rows))


def _span(values: Sequence[float]) -> str:
    low, high = (f"{value:.1f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def read_record() -> list[Decoding]:
    """Return the committed record."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return [from_document(Decoding, one, RECORD.name) for one in record["decodings"]]


def page() -> str:
    """Return docs/rk3588.md with the table of the record."""
    return filled(PAGE.read_text(encoding="utf-8"), {"predicted": markdown(table(read_record()))})


def write() -> None:
    """Write the record and the page."""
    cycles = json.loads(CYCLES.read_text(encoding="utf-8"))
    record = {
        "schema_version": 1,
        "predicted": True,
        "series_digest": cycles["build"]["series_digest"],
        "cores": N_CORES,
        "ghz": GHZ,
        "bytes_per_second": BYTES_PER_SECOND,
        "decodings": [asdict(one) for one in decodings(cycles)],
    }
    write_atomic(RECORD, json.dumps(record, indent=1) + "\n")
    write_atomic(PAGE, page())


def measure(programs: Path, model: str, depths: tuple[int, ...], ghz: float, gbs: float | None) -> Table:
    """Return tokens per second, predicted for this machine and measured.

    Raises KVQuantError for an unknown model and where a run fails.
    """
    cases = {one.policy: one for one in read_record() if (one.model, one.kernels) == (model, "patched")}
    if not cases:
        known = ", ".join(dict.fromkeys(one.model for one in read_record()))
        raise KVQuantError(f"no prediction for {model!r}; known: {known}")
    board = Board(_memory_speed(programs) if gbs is None else gbs * 1e9, ghz)
    said = f"memory {board.bytes_per_second / 1e9:.1f} GB/s, {board.n_cores} threads, {ghz:g} GHz"
    print(said, file=sys.stderr)
    path = model_path(model, say=lambda line: print(line, file=sys.stderr))
    options = BenchOptions(path, depths, n_prompt=32, n_gen=32, n_threads=board.n_cores)
    policies = {name: parse_policy("*:k={}/v={}".format(*POLICIES[name])) for name in cases}
    rounds: list[SpeedRound] = []
    with tempfile.TemporaryDirectory(prefix="kvquant-") as logs:
        run_rounds(programs, options, policies, N_ROUNDS, Path(logs), rounds.append, _failed)
    rows = []
    for name, points in speeds_of(rounds, "f16").items():
        for point in points:
            if point.phase == "decode" and point.tokens_per_second is not None:
                predicted, measured = 1 / cases[name].seconds(point.depth, board), point.tokens_per_second
                numbers = (f"{predicted:.1f}", f"{measured:.1f}", f"{measured / predicted:.2f}")
                rows.append((name, str(point.depth), *numbers))
    return Table(("cache", "depth", "predicted", "measured", "of it"), tuple(rows))


def _memory_speed(programs: Path) -> float:
    program = programs / PROGRAM
    if not program.is_file():
        raise KVQuantError(f"there is no {PROGRAM} in {programs}, which reads the memory's speed; give --gbs")
    return max(read_bandwidth(program, BANDWIDTH_MIB, N_CORES) for _ in range(3))


def _failed(label: str, error: LlamaError, _log: Path) -> NoReturn:
    raise LlamaError(f"{label}: {error}") from error


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write", help="the record and the page, from the record of cycles")
    one = commands.add_parser("measure", help="run llama-bench here and print both")
    one.add_argument("--programs", type=Path, required=True, metavar="DIR", help="of the patched llama.cpp")
    one.add_argument("--model", required=True, metavar="NAME", help="one of the table")
    one.add_argument(
        "--depths", default=",".join(map(str, DEPTHS)), metavar="N,N", help="tokens in the cache"
    )
    one.add_argument("--ghz", type=float, default=GHZ, help="clock of the fast cores (default %(default)s)")
    one.add_argument("--gbs", type=float, metavar="N", help="the memory's speed, instead of reading it")
    arguments = parser.parse_args()
    try:
        if arguments.command == "write":
            write()
        else:
            depths = tuple(int(part) for part in arguments.depths.split(","))
            print(text(measure(arguments.programs, arguments.model, depths, arguments.ghz, arguments.gbs)))
    except KVQuantError as error:
        print(f"predict_rk.py: error: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError:
        parser.error(f"--depths {arguments.depths}: give numbers of tokens, such as 0,2048")
    return 0


if __name__ == "__main__":
    sys.exit(main())
