#!/usr/bin/env python3
"""Estimate what attention costs a Cortex-A76, in cycles, on the shapes of real models.

qemu runs an RK3588 build one instruction at a time and says which. Of the instructions that 512 more cache
rows add, each run of straight code goes to llvm-mca, with LLVM's model of the Neoverse N1, the A76's
sibling for servers (LLVM's own cortex-a76 is a Cortex-A57). Its cycles, times how often it ran, are the
estimate. All loads hit the first cache there; what the memory takes is in predict_rk.py.

Example: tools/attention_cycles_rk.py --out benchmarks/results/attention-cycles-rk3588.json \\
    --programs "$(kvquant llama build --target rk3588 --program llama-kv-attention-op)"
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from attention_op import PROGRAM
from kernel_constants import constant
from kvquant.assets.registry import models
from kvquant.errors import KVQuantError
from kvquant.files import write_atomic
from kvquant.llama.toolchain import find_target
from kvquant.processes.command import run_captured
from kvquant.tables import NONE, Table, markdown
from marked_page import filled
from prove_attention_rk import added_by_rows, build_facts, counted_program, make_case, record_from

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/attention.md"
RECORD = ROOT / "benchmarks/results/attention-cycles-rk3588.json"

MODELS = {name: (model.n_head, model.n_head_kv, model.head_dim) for name, model in models().items()}
"""Query heads, KV heads and width."""

TYPES = (("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0"), ("q4_0", "q4_0"), ("tq3", "tq3"))
ADDED_ROWS = 512
"""Rows that the longer of two caches has more. A call's own work varies by thousands of instructions."""

STOCK_TYPES = (("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"))
"""Stock has no attention for K and V of two types, and not the series' own."""

MCA = ("llvm-mca-19", "llvm-mca-20", "llvm-mca-18", "llvm-mca-17")
"""Versions that know the Neoverse N1."""

N_ITERATIONS = 100

QEMU_BASE = 0x5500000000
"""Where qemu puts a position-independent program."""

_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$", re.MULTILINE)
_TARGET = re.compile(r"\b[0-9a-f]+ <[^>]*>")
_BRANCH = re.compile(r"^(b|b\.\w+|bl|br|blr|ret|cbn?z|tbn?z)\b")


@dataclass(frozen=True)
class Cycles:
    """What a cache row costs one query head of one token, in the product of K, the softmax and V's sum.

    in_library: the share of the instructions outside the program, which count as the others do on average.
    """

    model: str
    kernels: str
    k_type: str
    v_type: str
    n_head: int
    n_head_kv: int
    head_dim: int
    instructions: float
    cycles: float
    in_library: float


class Listing:
    """The instructions of a program by address, as llvm-mca takes them.

    objdump: of the target. Raises KVQuantError where it cannot read the program.
    """

    def __init__(self, objdump: str, program: Path) -> None:
        status, text = run_captured([objdump, "-d", "--no-show-raw-insn", str(program)])
        if status:
            raise KVQuantError(f"cannot disassemble {program.name}: {text.strip().splitlines()[-1]}")
        self.lines = {
            int(match[1], 16): _TARGET.sub("#0", match[2].split(" //")[0].strip())
            for match in _INSTRUCTION.finditer(text)
        }

    def blocks(self, counts: Mapping[int, int]) -> Iterator[tuple[str, int]]:
        """Yield each run of code without a branch inside it, and how often it ran."""
        block: list[str] = []
        for address, following in pairwise([*sorted(counts), -1]):
            line = self.lines[address]
            block.append(line)
            if (
                _BRANCH.match(line)
                or following != address + 4
                or counts[following] != counts[address]
                or following not in self.lines
            ):
                yield "\n".join(block), counts[address]
                block = []


class Throughput:
    """Cycles of straight code when it runs over and over, by llvm-mca; each text is asked for once."""

    def __init__(self) -> None:
        self.program = next((path for name in MCA if (path := shutil.which(name))), None)
        if self.program is None:
            raise KVQuantError(
                "no llvm-mca of LLVM 17 or newer; install it (Debian: apt-get install llvm-19)"
            )
        self._known: dict[str, float] = {}

    def of(self, blocks: Sequence[str]) -> dict[str, float]:
        """Return cycles by text. Raises KVQuantError for code that llvm-mca cannot read."""
        new = [block for block in dict.fromkeys(blocks) if block not in self._known]
        if new:
            source = "".join(
                f"# LLVM-MCA-BEGIN b{i}\n{block}\n# LLVM-MCA-END\n" for i, block in enumerate(new)
            )
            for name, cycles in self._ask(source).items():
                self._known[new[int(name[1:])]] = cycles
        return {block: self._known[block] for block in blocks}

    def _ask(self, source: str) -> dict[str, float]:
        done = subprocess.run(
            [
                str(self.program),
                "-mtriple=aarch64-linux-gnu",
                "-mcpu=neoverse-n1",
                f"-iterations={N_ITERATIONS}",
                "-skip-unsupported-instructions=lack-sched",  # atomic additions, a handful in each operation
                "-json",
                "-",
            ],
            input=source,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise KVQuantError(f"llvm-mca: {done.stderr.strip().splitlines()[0]}")
        regions = json.loads(done.stdout)["CodeRegions"]
        return {
            region["Name"]: region["SummaryView"]["TotalCycles"] / N_ITERATIONS
            for region in regions
            if region["Name"]
        }


def estimate(counts: Mapping[int, int], listing: Listing, throughput: Throughput) -> tuple[int, float, float]:
    """Return instructions, cycles, and the share of instructions that is the C library's."""
    lies_fixed = any(address in listing.lines for address in counts)
    base = 0 if lies_fixed else QEMU_BASE
    inside = {address - base: n for address, n in counts.items() if address - base in listing.lines}
    total, ours = sum(counts.values()), sum(inside.values())
    if not ours:
        raise KVQuantError("none of the executed addresses is the program's")
    blocks = list(listing.blocks(inside))
    cycles = throughput.of([text for text, _ in blocks])
    return total, sum(cycles[text] * n for text, n in blocks) * total / ours, 1 - ours / total


def deep_rows(n_head_kv: int) -> int:
    """Return the cache rows from which on chunks are as long as in deep caches."""
    return constant("CHUNK_KV") * -(-constant("MIN_ITEMS") // n_head_kv)


def measure(programs: Path) -> dict[str, Any]:
    """Return the whole record. Raises KVQuantError when a program is missing."""
    target = find_target("rk3588")
    if target.runner is None or target.objdump is None:
        raise KVQuantError(
            "no qemu-aarch64-static or no objdump for aarch64; install them (Debian: apt-get install "
            "qemu-user-static binutils-aarch64-linux-gnu)"
        )
    program = programs / PROGRAM
    listing, throughput = Listing(target.objdump, program), Throughput()
    found = []
    for kernels, all_types in (("patched", TYPES), ("stock", STOCK_TYPES)):
        with counted_program(program, target.runner, kernels == "patched") as (running, counter):
            running.compute(make_case(TYPES[0], (1, 1, 32), 1, 1))  # what is done once is done
            for model, shape in MODELS.items():
                n_rows = ADDED_ROWS if kernels == "stock" else deep_rows(shape[1])
                for types in all_types:
                    counts = added_by_rows(running, counter, types, shape, 1, (n_rows, n_rows + ADDED_ROWS))
                    total, cycles, library = estimate(counts, listing, throughput)
                    per = ADDED_ROWS * shape[0]
                    each = (round(total / per, 1), round(cycles / per, 1), round(library, 3))
                    found.append(Cycles(model, kernels, *types, *shape, *each))
                    print(f"{model} {kernels} {'/'.join(types)}: {found[-1].cycles}", file=sys.stderr)
    return {
        "schema_version": 1,
        "build": build_facts(programs),
        "llvm_mca": Path(str(throughput.program)).name,
        "processor": "neoverse-n1",
        "rows_added": ADDED_ROWS,
        "cycles": [asdict(one) for one in found],
    }


def table(record: Mapping[str, Any]) -> Table:
    """Return cycles with these kernels and with stock's."""
    cases = {(one["model"], one["k_type"], one["v_type"], one["kernels"]): one for one in record["cycles"]}
    rows = []
    for (model, k_type, v_type, kernels), one in cases.items():
        if kernels == "patched":
            stock = cases.get((model, k_type, v_type, "stock"))
            rows.append(
                (
                    model,
                    k_type,
                    v_type,
                    f"{one['instructions']:.0f}",
                    f"{one['cycles']:.0f}",
                    NONE if stock is None else f"{stock['cycles']:.0f}",
                    NONE if stock is None else f"{stock['cycles'] / one['cycles']:.1f}",
                )
            )
    head = ("heads of", "K", "V", "instructions", "cycles", "stock", "stock / patched")
    return Table(head, tuple(rows))


def page() -> str:
    """Return docs/attention.md with the table of the committed record."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return filled(PAGE.read_text(encoding="utf-8"), {"cycles": markdown(table(record))})


def main() -> int:
    status = record_from(Path(__file__).name, __doc__, measure)
    if status == 0:
        write_atomic(PAGE, page())
    return status


if __name__ == "__main__":
    sys.exit(main())
