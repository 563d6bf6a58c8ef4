"""Time attention beside ONNX Runtime's over its own quantized caches, on the shapes of real models.

    python -m venv ort && ort/bin/pip install onnxruntime==1.32.0 onnx==1.23.2 numpy
    python benchmarks/attention_onnx.py run --programs "$(kvquant llama build)" --onnx ort/bin/python
    python benchmarks/attention_onnx.py write   # the table of docs/attention.md, from the record

One layer alone, as in attention_alone.py. The two take turns; a time is that of the fastest of several runs,
a ratio the median over rounds of the ratios within a round. ONNX Runtime's output is held to attention in
float64 over its codes, so that both do the whole work. Its types have one scale for each channel, fitted
before; ours one for each 32 values.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from attention_alone import SHAPES, Work, make_case, ratio
from attention_op import PROGRAM, AttentionProgram
from kvquant.files import write_atomic
from kvquant.tables import Table, markdown
from marked_page import filled
from provenance import provenance, write_record

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/attention-onnx.json"
PAGE = ROOT / "docs/attention.md"

PEERS = {"f16": "float32", "q8_0": "int8", "q4_0": "int4"}
"""The type of ONNX Runtime that a type of ours is compared with."""

WORK = (Work("decode", 1, (2048, 8192), 9), Work("prefill", 256, (2048,), 3))
LARGEST_ERROR = 1e-5


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each round, of one layer's attention."""

    work: str
    shape: str
    type: str
    depth: int
    ours: tuple[float, ...]
    onnx: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times as long ONNX Runtime takes."""
        return ratio(list(self.onnx), list(self.ours))


def cases() -> Iterator[tuple[Work, str, int, str]]:
    """Yield work, shape, depth and our type of every comparison."""
    for work in WORK:
        for shape, depth, kind in product(SHAPES, work.depths, PEERS):
            yield work, shape, depth, kind


def measure(
    ours: AttentionProgram, onnx: subprocess.Popen[str], n_rounds: int, n_threads: int
) -> list[Timing]:
    """Time every case on both, in turn. Raises SystemExit where ONNX Runtime fails or is not exact."""
    found = []
    for work, shape, depth, kind in cases():
        case = make_case(work, shape, (kind, kind), depth)
        run = {"n_threads": n_threads, "n_runs": work.n_runs}
        heads = dict(zip(("n_head", "n_head_kv", "head_dim"), SHAPES[shape], strict=True))
        asked = {**heads, "depth": depth, "n_tokens": work.n_tokens, "type": PEERS[kind], **run}
        seconds = [(ours.compute(case, **run).seconds, ask(onnx, asked)) for _ in range(n_rounds)]
        one, other = (tuple(round(1e3 * x, 4) for x in side) for side in zip(*seconds, strict=True))
        found.append(Timing(work.name, shape, kind, depth, one, other))
        print(found[-1], file=sys.stderr)
    return found


def ask(onnx: subprocess.Popen[str], case: dict[str, Any]) -> float:
    """Return the seconds of a case in ONNX Runtime. Raises SystemExit where it fails or is not exact."""
    to, back = pipes(onnx)
    to.write(json.dumps(case) + "\n")
    to.flush()
    answer = back.readline()
    if not answer:
        raise SystemExit(f"{case}: onnx_bench.py ended with status {onnx.wait()}")
    result = json.loads(answer)
    if not result["error"] < LARGEST_ERROR:
        raise SystemExit(f"{case}: off by {result['error']}; this is not the same attention")
    return float(result["seconds"])


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """Return a process's input and output."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process has no pipes")
    return process.stdin, process.stdout


def table(timings: list[Timing]) -> Table:
    """Return the times of both and how many times as long ONNX Runtime takes."""
    rows = []
    for one in timings:
        times = (f"{median(side):.3g}" for side in (one.ours, one.onnx))
        about = (one.work, str(one.depth), one.shape, f"{one.type}, {PEERS[one.type]}")
        rows.append((*about, *times, f"{one.ratio:.2f}"))
    head = ("", "depth", "heads of", "types", "patched, ms", "ONNX Runtime, ms", "ONNX Runtime / patched")
    return Table(head, tuple(rows))


def timings(record: dict[str, Any]) -> list[Timing]:
    """Return what a record holds."""
    return [
        Timing(**{**run, "ours": tuple(run["ours"]), "onnx": tuple(run["onnx"])}) for run in record["runs"]
    ]


def page(record: dict[str, Any]) -> str:
    """Return docs/attention.md with the table."""
    return filled(PAGE.read_text(encoding="utf-8"), {"attention onnx": markdown(table(timings(record)))})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure")
    running.add_argument("--programs", type=Path, required=True, help="folder of the patched programs")
    running.add_argument("--onnx", type=Path, required=True, help="a Python that has onnxruntime and onnx")
    running.add_argument("--rounds", type=int, default=5)
    running.add_argument("--threads", type=int, default=1)
    commands.add_parser("write", help="put the table into the page")
    options = parser.parse_args()
    if options.command == "write":
        write_atomic(PAGE, page(json.loads(RECORD.read_text())))
        return
    made = provenance("benchmarks/attention_onnx.py", ("numpy",))
    info = json.loads((options.programs.parent / "build-info.json").read_text())
    made |= {"series": info["series_digest"][:12], "onnxruntime": version(options.onnx)}
    made |= {"n_threads": options.threads, "n_rounds": options.rounds}
    script = str(Path(__file__).with_name("onnx_bench.py"))
    with (
        AttentionProgram([options.programs / PROGRAM]) as ours,
        subprocess.Popen(
            [str(options.onnx), script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as onnx,
    ):
        made["runs"] = [asdict(one) for one in measure(ours, onnx, options.rounds, options.threads)]
        pipes(onnx)[0].close()
    write_record(made, RECORD)


def version(python: Path) -> str:
    """Return the version of the ONNX Runtime that a Python has."""
    words = [str(python), "-c", "import onnxruntime; print(onnxruntime.__version__)"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
