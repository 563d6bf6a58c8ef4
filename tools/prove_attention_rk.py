#!/usr/bin/env python3
"""Hold an RK3588 build's attention to its tests under qemu's Cortex-A76, and count its instructions.

The tests of tests/attention run against the ARM program. Then qemu runs it one instruction at a time: what
128 more cache rows cost, divided by rows, query heads and tokens, with the kernels and with stock's code.
That counts work, not time; how long it takes on a board must be measured there.

Example: tools/prove_attention_rk.py --out benchmarks/results/attention-rk3588.json \\
    --programs "$(kvquant llama build --target rk3588 --program llama-kv-attention-op)"
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from attention_op import PROGRAM, AttentionCase, AttentionProgram
from kvquant.errors import KVQuantError
from kvquant.files import write_atomic
from kvquant.formats.registry import cache_format
from kvquant.llama.toolchain import Target, find_target
from kvquant.processes.command import run_captured

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = "ggml/src/CMakeFiles/ggml-cpu.dir/ggml-cpu"
SHAPES = ((4, 2, 128), (8, 1, 256))
"""Query heads, KV heads and width: groups of 2 and of 8 heads."""

TYPES = (("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"))
N_TOKENS = (1, 4)
N_ROWS = (384, 512)
"""Both are cut into chunks of 64 for every shape here, so that the rows are all that differs."""

DRAIN_SECONDS = 0.5
"""What qemu still writes after the answer is there."""

_MNEMONIC = re.compile(r"^\s+[0-9a-f]+:\t[0-9a-f ]+\t(\S+)\t?(.*)", re.MULTILINE)


@dataclass(frozen=True)
class Count:
    """Instructions per query token, query head and cache row, with the kernels and without."""

    k_type: str
    v_type: str
    n_head: int
    n_head_kv: int
    head_dim: int
    n_tokens: int
    ours: float
    stock: float


def instructions(object_file: Path, target: Target) -> Counter[str]:
    """Count what is told apart in the disassembly: sdot, and multiply-adds by the lanes they work on."""
    if target.objdump is None:
        raise KVQuantError("no objdump for aarch64; install binutils-aarch64-linux-gnu")
    status, text = run_captured([target.objdump, "-d", str(object_file)])
    if status:
        raise KVQuantError(f"cannot disassemble {object_file}: {text.strip().splitlines()[-1]}")
    found: Counter[str] = Counter()
    for match in _MNEMONIC.finditer(text):
        lanes = re.search(r"\.(16b|8b|8h|4h|4s|2s|2d)\b", match[2])
        if match[1] in ("sdot", "fmla", "fcvtl", "tbl"):
            found[f"{match[1]} {lanes[1]}" if lanes else match[1]] += 1
    return found


def run_tests(programs: Path, runner: Sequence[str]) -> str:
    """Run tests/attention against the program behind ``runner``; pytest's last line."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, PROGRAM)
        command = " ".join(f"'{part}'" for part in (*runner, programs / PROGRAM))
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "tests/attention"],
            cwd=ROOT,
            env={**os.environ, "KVQUANT_LLAMA_BIN": folder},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    lines = done.stdout.strip().splitlines() or ["no output"]
    if done.returncode:
        raise KVQuantError(f"tests/attention fail under {Path(runner[0]).name}: {lines[-1]}")
    return lines[-1]


class AddressCounter:
    """Counts how often each address is in what qemu writes to a pipe as it runs, in a thread."""

    def __init__(self, pipe: Path) -> None:
        self._counts: Counter[bytes] = Counter()
        self._n = 0
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: Path) -> None:
        with pipe.open("rb") as source:
            while lines := source.readlines(1 << 20):
                # Trace 0: 0x7f64d4000100 [00000000/0000005500001234/...
                self._counts.update(line.split(b"/", 2)[1] for line in lines if line.startswith(b"Trace"))
                self._n += len(lines)

    def settled(self) -> Counter[int]:
        """Return the counts by address once they no longer grow."""
        seen = -1
        while seen != self._n:
            seen = self._n
            time.sleep(DRAIN_SECONDS)
        return Counter({int(address, 16): n for address, n in self._counts.items()})


@contextmanager
def counted_program(
    program: Path, runner: Sequence[str], kv_attention: bool
) -> Iterator[tuple[AttentionProgram, AddressCounter]]:
    """The program, run one instruction at a time, and the counter of what it executes."""
    with tempfile.TemporaryDirectory() as folder:
        pipe = Path(folder, "log")
        os.mkfifo(pipe)
        command = [*runner, "-singlestep", "-d", "exec,nochain", "-D", str(pipe), str(program)]
        counter = AddressCounter(pipe)
        with AttentionProgram(command, kv_attention=kv_attention) as running:
            yield running, counter


def added_by_rows(
    running: AttentionProgram,
    counter: AddressCounter,
    types: tuple[str, str],
    shape: tuple[int, int, int],
    n_tokens: int,
    rows: tuple[int, int] = N_ROWS,
) -> Counter[int]:
    """Return how often each address is executed more, or less, with the longer cache than the shorter."""
    executed = []
    for n_rows in rows:
        before = counter.settled()
        running.compute(make_case(types, shape, n_tokens, n_rows))
        executed.append(counter.settled())
        executed[-1].subtract(before)
    short, long = executed
    long.subtract(short)
    return Counter({address: n for address, n in long.items() if n})


def make_case(
    types: tuple[str, str], shape: tuple[int, int, int], n_tokens: int, n_rows: int
) -> AttentionCase:
    (k_type, v_type), (n_head, n_head_kv, head_dim) = types, shape
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, n_tokens, n_head, head_dim), np.float32)
    x = rng.standard_normal((1, n_rows, n_head_kv, head_dim), np.float32)
    k, v = cache_format(k_type).quantize(x), cache_format(v_type).quantize(x)
    mask = np.zeros((1, 1, n_tokens, n_rows), np.float16)
    return AttentionCase(k_type, v_type, q, k, v, head_dim, n_rows, head_dim**-0.5, mask)


def count_all(program: Path, runner: Sequence[str], kv_attention: bool) -> list[float]:
    """Instructions per token, head and row for every case, in the order of `cases`."""
    counts = []
    with counted_program(program, runner, kv_attention) as (running, counter):
        running.compute(make_case(TYPES[0], SHAPES[0], 1, 1))  # what is done once is done
        for types, shape, n_tokens in cases():
            total = added_by_rows(running, counter, types, shape, n_tokens).total()
            added = total / (N_ROWS[1] - N_ROWS[0]) / shape[0] / n_tokens
            counts.append(added)
            print(
                f"{'ours' if kv_attention else 'stock'} {types} {shape} {n_tokens}: {added:.1f}",
                file=sys.stderr,
            )
    return counts


def cases() -> Iterator[tuple[tuple[str, str], tuple[int, int, int], int]]:
    for shape in SHAPES:
        for n_tokens in N_TOKENS:
            for types in TYPES:
                yield types, shape, n_tokens


def build_facts(programs: Path) -> dict[str, Any]:
    """Return what a record says of the build that a folder of programs belongs to."""
    build = json.loads((programs.parent / "build-info.json").read_text())
    return {key: build[key] for key in ("commit", "series_digest", "cmake_args", "compiler")}


def prove(programs: Path) -> dict[str, Any]:
    """The whole record. Raises KVQuantError when there is no qemu, or a test fails."""
    target = find_target("rk3588")
    if target.runner is None:
        raise KVQuantError(
            "no qemu-aarch64-static on PATH; install it (Debian: apt-get install qemu-user-static)"
        )
    program = programs / PROGRAM
    objects = sorted((programs.parent / OBJECTS).glob("kv-attn*.o"))
    found = sum((instructions(path, target) for path in objects), Counter[str]())
    tests = run_tests(programs, target.runner)
    ours, stock = (count_all(program, target.runner, on) for on in (True, False))
    counts = [
        Count(*types, *shape, n_tokens, round(mine, 1), round(theirs, 1))
        for (types, shape, n_tokens), mine, theirs in zip(cases(), ours, stock, strict=True)
    ]
    return {
        "schema_version": 1,
        "runner": [Path(target.runner[0]).name, *target.runner[1:3]],
        "build": build_facts(programs),
        "instructions": dict(sorted(found.items())),
        "tests": tests,
        "rows_compared": N_ROWS,
        "counts": [asdict(count) for count in counts],
    }


def record_from(script: str, about: str | None, measure: Callable[[Path], dict[str, Any]]) -> int:
    """Measure the programs that the command line names and write its record; the exit code."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, required=True, metavar="DIR", help="of the ARM build")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON record")
    arguments = parser.parse_args()
    try:
        write_atomic(arguments.out, json.dumps(measure(arguments.programs), indent=1) + "\n")
    except KVQuantError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(record_from(Path(__file__).name, __doc__, prove))
