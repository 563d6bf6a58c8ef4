"""Time llama.cpp's attention alone on the shapes of real models: this series, one before, stock's code.

    python benchmarks/attention_alone.py run --build now=DIR --build before=DIR
    python benchmarks/attention_alone.py write   # tables and figure of docs/attention.md, from the record

Every DIR has llama-kv-attention-op; stock's code is the first one's with GGML_KV_ATTN=0. The builds take
turns, a case at a time. A time is that of the fastest of several runs, a ratio the median over rounds of the
ratios within a round. What the cache holds is random and does not matter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from attention_op import PROGRAM, AttentionCase, AttentionProgram, read_bandwidth
from attention_tables import markdown
from kvquant.files import write_atomic
from kvquant.formats.registry import cache_format
from kvquant.report.drawing import (
    PLACEHOLDERS,
    FigureSize,
    open_figure,
    standalone_svg,
    style_axes,
    themed_svg,
)
from marked_page import filled
from provenance import provenance, write_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/attention-alone.json"
PAGE = ROOT / "docs/attention.md"
FIGURE = ROOT / "docs/figures/attention-alone.svg"
SHAPES = {
    "Qwen2.5-Coder-0.5B": (14, 2, 64),
    "Qwen2.5-Coder-1.5B": (12, 2, 128),
    "SmolLM2-135M": (9, 3, 64),
    "Gemma-3-270M": (4, 1, 256),
    "groups of 2": (16, 8, 128),
}
"""Query heads, KV heads, head dim."""

TYPES = (("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q4_0", "tq3"), ("tq3", "tq3"))
STOCK = "stock"


@dataclass(frozen=True)
class Work:
    """What is timed. n_tokens: query tokens. n_slots: sequences that share the cache, most of it prompts."""

    name: str
    n_tokens: int
    depths: tuple[int, ...]
    n_runs: int
    n_slots: int = 1


WORK = (
    Work("decode", 1, (512, 2048, 8192, 32768), 9),
    Work("4 slots", 4, (4096,), 9, n_slots=4),
    Work("prefill", 256, (512, 2048, 8192), 2),
)
PROMPTS = 0.8
"""The part of a shared cache that holds prompts, each in one piece; the rest grew in turn."""


def cases() -> Iterator[tuple[Work, str, tuple[str, str], int]]:
    for work in WORK:
        for shape in SHAPES:
            for depth in work.depths:
                for types in TYPES:
                    yield work, shape, types, depth


def make_case(work: Work, shape: str, types: tuple[str, str], depth: int) -> AttentionCase:
    """A case of random values, which repeat after 256 cache rows."""
    n_head, n_head_kv, head_dim = SHAPES[shape]
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 1, 256, n_head_kv, head_dim)).astype(np.float32)
    k, v = (
        np.tile(cache_format(name).quantize(x), (1, depth // 256, 1, 1))
        for name, x in zip(types, values, strict=True)
    )
    q = rng.standard_normal((1, work.n_tokens, n_head, head_dim)).astype(np.float32)
    return AttentionCase(*types, q, k, v, head_dim, depth, scale=head_dim**-0.5, mask=make_mask(work, depth))


def make_mask(work: Work, depth: int) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Causal for one sequence; with slots, every token sees its own."""
    tokens, cells = np.arange(work.n_tokens)[:, None], np.arange(depth)
    if work.n_slots == 1:
        seen = cells <= tokens + depth - work.n_tokens
    else:
        prompt = int(depth * PROMPTS) // work.n_slots
        in_prompts = cells < prompt * work.n_slots
        seen = np.where(in_prompts, cells // prompt, cells % work.n_slots) == tokens
    return np.where(seen, np.float16(0), np.float16(-np.inf))[None, None]


def run(builds: Mapping[str, Path], n_rounds: int, n_threads: int) -> dict[str, Any]:
    """Time every case; the record."""
    first = next(iter(builds.values()))
    programs = {STOCK: first, **builds}
    made = provenance("benchmarks/attention_alone.py", ("numpy",))
    made["argv"] = [part.partition("=")[0] + "=DIR" if "=" in part else part for part in made["argv"]]
    made["series"] = {
        name: json.loads((path.parent / "build-info.json").read_text())["series_digest"][:12]
        for name, path in builds.items()
    }
    made["n_threads"], made["n_rounds"], made["runs"] = n_threads, n_rounds, []
    made["bytes_per_second"] = max(read_bandwidth(first / PROGRAM, 256, n_threads) for _ in range(3))
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(AttentionProgram([path / PROGRAM], kv_attention=name != STOCK))
            for name, path in programs.items()
        }
        for work, shape, types, depth in cases():
            case = make_case(work, shape, types, depth)
            timed = [name for name in running if name != STOCK or runs_in_stock(work, types)]
            seconds: dict[str, list[float]] = {name: [] for name in timed}
            for _ in range(n_rounds):
                for name in timed:
                    done = running[name].compute(case, n_threads=n_threads, n_runs=work.n_runs)
                    seconds[name].append(done.seconds)
            n_bytes = sum(side.nbytes for side in (case.k, case.v) if side is not None)
            about = {"work": work.name, "shape": shape, "k": types[0], "v": types[1], "depth": depth}
            milliseconds = {name: [round(1e3 * x, 4) for x in times] for name, times in seconds.items()}
            made["runs"].append({**about, "cache_bytes": n_bytes, "milliseconds": milliseconds})
            print(*about.values(), milliseconds, file=sys.stderr)
    return made


def runs_in_stock(work: Work, types: tuple[str, str]) -> bool:
    """Stock has no types of the series, none but equal ones, and its quantized prefill takes minutes."""
    return types == ("f16", "f16") or (types[0] == types[1] != "tq3" and work.name != "prefill")


def table(record: dict[str, Any], work: str, depth: int) -> str:
    """Milliseconds of one layer's attention at one depth, and what it gains."""
    found = {
        (run["shape"], run["k"], run["v"]): run
        for run in record["runs"]
        if run["work"] == work and run["depth"] == depth
    }
    limit = work == "decode"
    head = ["heads of", "K", "V", "ms", "before", "before / now", "stock f16 / now"]
    rows = []
    for (shape, k, v), one in found.items():
        times = one["milliseconds"]
        stock = found[shape, "f16", "f16"]["milliseconds"][STOCK]
        now, before = median(times["now"]), median(times["before"])
        cells = [shape, f"`{k}`", f"`{v}`", f"{now:.3g}", f"{before:.3g}"]
        cells += [f"{ratio(times['before'], times['now']):.2f}", f"{median(stock) / now:.2f}"]
        if limit:
            least = 1e3 * one["cache_bytes"] / record["bytes_per_second"]
            cells.append(f"{least / now:.0%}")
        rows.append(cells)
    return markdown(head + ["of the limit"] * limit, rows).rstrip()


def ratio(of: list[float], to: list[float]) -> float:
    """The median of the ratios of a round."""
    return median(a / b for a, b in zip(of, to, strict=True))


def tables(record: dict[str, Any]) -> dict[str, str]:
    """Return the parts of docs/attention.md, by their marks."""
    return {
        "attention alone: decode": table(record, "decode", 8192),
        "attention alone: 4 slots": table(record, "4 slots", 4096),
        "attention alone: prefill": table(record, "prefill", 2048),
    }


LINES = (
    ("stock f16", STOCK, "f16", PLACEHOLDERS.text, "--"),
    ("stock q8_0", STOCK, "q8_0", PLACEHOLDERS.series_1, "--"),
    ("f16", "now", "f16", PLACEHOLDERS.text, "-"),
    ("q8_0", "now", "q8_0", PLACEHOLDERS.series_1, "-"),
    ("q4_0", "now", "q4_0", PLACEHOLDERS.series_2, "-"),
    ("tq3", "now", "tq3", PLACEHOLDERS.series_3, "-"),
)
LIMIT = "q8_0, read alone"


def figure(record: dict[str, Any]) -> str:
    """Return the time of a decoded token against depth as SVG, a panel for each of the models."""
    with open_figure(FigureSize(10, 7.6), PLACEHOLDERS) as drawn:
        for panel, shape in zip(drawn.subplots(2, 2, sharex=True, sharey=True).flat, SHAPES, strict=False):
            runs = [run for run in record["runs"] if (run["work"], run["shape"]) == ("decode", shape)]
            draw_panel(panel, runs, record["bytes_per_second"])
            style_axes(panel, PLACEHOLDERS, f"{shape}: one layer, ms a token")
        lines, labels = drawn.axes[0].get_legend_handles_labels()
        drawn.legend(
            lines, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=PLACEHOLDERS.text
        )
        return standalone_svg(themed_svg(drawn, "alone"))


def draw_panel(panel: Axes, runs: list[dict[str, Any]], bytes_per_second: float) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    for label, build, kind, color, style in LINES:
        of_kind = [run for run in runs if run["k"] == run["v"] == kind and build in run["milliseconds"]]
        depths = [run["depth"] for run in of_kind]
        times = [median(run["milliseconds"][build]) for run in of_kind]
        panel.plot(depths, times, style, color=color, marker="o", markersize=4, label=label)
    read = [run for run in runs if run["k"] == run["v"] == "q8_0"]
    limits = [1e3 * run["cache_bytes"] / bytes_per_second for run in read]
    panel.plot([run["depth"] for run in read], limits, ":", color=PLACEHOLDERS.rival, label=LIMIT)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks([run["depth"] for run in read], [f"{run['depth']:,}" for run in read])
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("tokens in the cache", color=PLACEHOLDERS.text)
    panel.label_outer()


def named_build(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not folder or not (Path(folder) / PROGRAM).is_file():
        raise argparse.ArgumentTypeError(f"{text}: write NAME=DIR, DIR a folder with {PROGRAM}")
    return name, Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run")
    measure.add_argument("--build", type=named_build, action="append", required=True, metavar="NAME=DIR")
    measure.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    measure.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    measure.add_argument("--out", type=Path, default=RECORD, metavar="FILE", help="the JSON record")
    commands.add_parser("write")
    arguments = parser.parse_args()
    if arguments.command == "run":
        write_record(run(dict(arguments.build), arguments.rounds, arguments.threads), arguments.out)
    else:
        record = json.loads(RECORD.read_text())
        write_atomic(PAGE, filled(PAGE.read_text(), tables(record)))
        write_atomic(FIGURE, figure(record))


if __name__ == "__main__":
    main()
