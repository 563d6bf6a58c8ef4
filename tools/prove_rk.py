#!/usr/bin/env python3
"""Run the RK3588 build under qemu's Cortex-A76 beside the native build, on small random models with mixed
policies.

The KV cache must have the same types and bytes in every layer on both. Whether the greedy tokens are the same
is recorded, not demanded: the two machines add floating-point numbers in different orders.

Example: tools/prove_rk.py --native "$(kvquant llama build)" --prefix build/rk3588 --out
benchmarks/results/rk3588.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from kvquant.errors import KVQuantError
from kvquant.files import write_atomic
from kvquant.llama.logs import LoggedLayer
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.llama.toolchain import find_target
from kvquant.processes.command import run_captured
from write_random_gguf import RandomModel, write_random_gguf

CASES = (
    (RandomModel(arch="llama", n_layer=5, n_ff=128), "0-1:q8_0,2-:k=q4_0/v=q5_1"),
    (RandomModel(arch="qwen3", n_layer=4, head_dim=128, n_ff=128), "0:f16,1-:q4_0"),
    (RandomModel(arch="gemma3", n_layer=7, window=64, n_ff=128), "kv0-kv2:q8_0,kv3-:iq4_nl"),
    (RandomModel(arch="qwen35", n_layer=8, n_ff=128), "kv0:q8_0"),
)
PROMPT = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software"
N_PREDICT = 8


@dataclass(frozen=True)
class Run:
    """One model under one policy on both machines."""

    arch: str
    policy: str
    same_cache: bool
    n_bytes: int
    layers: tuple[LoggedLayer, ...]
    tokens: tuple[int, ...]
    same_tokens: bool


def wrap_programs(prefix: Path, runner: tuple[str, ...], folder: Path) -> Path:
    """A folder whose llama-server is the ARM one, run through ``runner``."""
    script = folder / "llama-server"
    command = " ".join(f"'{part}'" for part in (*runner, str(prefix.resolve() / "bin" / "llama-server")))
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    return folder


def serve(programs: Path, model: Path, policy: str) -> tuple[tuple[LoggedLayer, ...], tuple[int, ...]]:
    options = ServerOptions(model, n_ctx=256, kv_layers=policy, n_threads=2)
    with LlamaServer(programs, options) as server:
        answer = server.completion(
            PROMPT, N_PREDICT, ignore_eos=True, grammar="root ::= [a-z ]+", return_tokens=True
        )
        return server.kv_log().layers, tuple(answer["tokens"])


def compare(native: Path, arm: Path, model: RandomModel, policy: str, folder: Path) -> Run:
    path = write_random_gguf(folder / f"{model.arch}.gguf", model)
    layers, tokens = serve(native, path, policy)
    arm_layers, arm_tokens = serve(arm, path, policy)
    n_bytes = sum(layer.k.n_bytes + (layer.v.n_bytes if layer.v else 0) for layer in arm_layers)
    return Run(
        model.arch,
        policy,
        bool(layers) and layers == arm_layers,
        n_bytes,
        arm_layers,
        tokens,
        tokens == arm_tokens,
    )


def prove(native: Path, prefix: Path) -> dict[str, Any]:
    """The whole record. Raises KVQuantError when there is no qemu or a server fails."""
    runner = find_target("rk3588").runner
    if runner is None:
        raise KVQuantError(
            "no qemu-aarch64-static on PATH; install it (Debian: apt-get install qemu-user-static)"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "arm").mkdir()
        arm = wrap_programs(prefix, runner, folder / "arm")
        _, version = run_captured([str(arm / "llama-server"), "--version"])
        runs = [compare(native, arm, model, policy, folder) for model, policy in CASES]
    return {
        "schema_version": 1,
        "runner": [Path(runner[0]).name, *runner[1:]],
        "version": version.strip().splitlines(),
        "build": json.loads((prefix / "build-info.json").read_text()),
        "runs": [asdict(run) for run in runs],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--native", type=Path, required=True, metavar="DIR", help="folder of the native programs"
    )
    parser.add_argument(
        "--prefix", type=Path, required=True, metavar="DIR", help="what tools/build_rk.sh wrote"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON record")
    arguments = parser.parse_args()
    try:
        record = prove(arguments.native, arguments.prefix)
        write_atomic(arguments.out, json.dumps(record, indent=1) + "\n")
    except KVQuantError as error:
        print(f"prove_rk.py: error: {error}", file=sys.stderr)
        return error.exit_code
    good = sum(run["same_cache"] for run in record["runs"])
    print(f"{good} of {len(record['runs'])} caches are the same as on this machine", file=sys.stderr)
    return 0 if good == len(record["runs"]) else 3


if __name__ == "__main__":
    sys.exit(main())
