"""Computed memory against what llama.cpp allocates, for every architecture of the pin that has rules.

llama-kv-layers-memory makes a model of a GGUF header alone, without weights, and logs what its context
allocates. The headers are upstream's own (tests/test-llama-archs.cpp) and changes of them: other layers,
heads, windows. As a program it writes the record that docs/memory.md speaks of (`make memory`):

    python -m memory.headers PROGRAM OUT.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvquant.documents import write_json
from kvquant.errors import KVQuantError, ModelFileError, ShapeError
from kvquant.memory import ContextOptions, memory_of
from kvquant.model.architectures import REFUSED, RULES, read_shape
from kvquant.model.gguf_header import Array, read_header
from kvquant.model.gguf_types import STRUCT_CODES, ValueType
from kvquant.policy import parse_policy
from memory.checks import against_log
from model.gguf_bytes import GgufFile, Tensor, Typed, int_array, number

# A run of the program, and what it is to `kvquant.memory`. The first is long enough that windows shorten the
# second cache; the program's flash attention is on unless a run says otherwise.
RUNS: Mapping[str, tuple[ContextOptions, str, str]] = {
    "c=12000,np=4,kvu,full=0": (ContextOptions(12000, 4, kv_unified=True), "f16", "f16"),
    "c=25000,np=2,ub=100,k=q8_0,v=q8_0,full=0": (ContextOptions(25000, 2, n_ubatch=100), "q8_0", "q8_0"),
    "c=513,np=3,k=f32,v=f32,full=0": (ContextOptions(513, 3), "f32", "f32"),
    "c=11000,fa=0,full=0": (ContextOptions(11000, flash_attn=False), "f16", "f16"),
}

# Keys that upstream's headers lack, by architecture.
LACKING: Mapping[str, Mapping[str, Any]] = {
    "arwkv7": {f"attention.{name}_lora_rank": 32 for name in ("decay", "iclr", "value_residual_mix", "gate")},
    "rwkv7": {f"attention.{name}_lora_rank": 32 for name in ("decay", "iclr", "value_residual_mix", "gate")},
    "deepseek2-ocr": {"expert_feed_forward_length": 384},
    "gemma4": {"attention.sliding_window_pattern": int_array([1, 1, 1, 1, 0], ValueType.BOOL)},
}

# What is changed in every header: key to value; None leaves the key out.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "nine layers": {"block_count": 9, "attention.sliding_window_pattern": None},
    "another period": {"block_count": 7, "attention.sliding_window_pattern": 3},
    "listed layers": {
        "block_count": 6,
        "attention.sliding_window_pattern": int_array([1, 0, 0, 1, 1, 0], ValueType.BOOL),
    },
    "no window": {"attention.sliding_window": 0, "attention.sliding_window_pattern": None},
    "a short window": {"attention.sliding_window": 700, "block_count": 5},
    "fewer KV heads": {"attention.head_count_kv": 1},
    "wider heads": {"attention.key_length": 192, "attention.value_length": 96},
    "one nextn layer": {"block_count": 5, "nextn_predict_layers": 1},
    "an interval": {"block_count": 8, "full_attention_interval": 3},
    "looped": {"num_loops": 3},
}

# Architectures that need more than a header to be loaded.
NO_HEADER: Mapping[str, str] = {
    "deepseek2-ocr": "upstream's tests make no model of it",
    "graniteswitch": "llama.cpp reads its adapters from arrays and tensors",
}


def changed(source: Path, target: Path, arch: str, changes: Mapping[str, Any]) -> Path:
    """A header with other values at keys of its architecture; the strings of its vocabulary stay."""
    data = source.read_bytes()
    header = read_header(source)
    keys: dict[str, Any] = {}
    for key, entry in header.values.items():
        if isinstance(entry, Array) and entry.items is None:
            continue
        if isinstance(entry, Array):
            items = list(entry.items)
            keys[key] = int_array(items, entry.type) if entry.type in STRUCT_CODES else None
        elif entry.type is ValueType.STRING:
            keys[key] = entry.value
        else:
            keys[key] = number(entry.type, entry.value)
    vocabulary = data[data.index(b"\x15\0\0\0\0\0\0\0tokenizer.ggml.tokens") + 8 + 21 :]
    n_tokens = header.values["tokenizer.ggml.tokens"].n
    at = 4 + 4 + 8
    end = at
    for _ in range(n_tokens):
        end += 8 + int.from_bytes(vocabulary[end : end + 8], "little")
    keys["tokenizer.ggml.tokens"] = Typed(ValueType.ARRAY, vocabulary[4:end])
    for key, value in {**LACKING.get(arch, {}), **changes}.items():
        keys.pop(f"{arch}.{key}", None)
        if value is not None:
            keys[f"{arch}.{key}"] = value
    n_layer = keys[f"{arch}.block_count"]
    n_layer = n_layer if isinstance(n_layer, int) else int.from_bytes(n_layer.data, "little")
    stretch(keys, arch, n_layer)
    target.write_bytes(GgufFile(keys, [Tensor("output.weight", (0,))]).encoded() + bytes(64))
    return target


def stretch(keys: dict[str, Any], arch: str, n_layer: int) -> None:
    """Give arrays that have an item per layer as many as there are layers now."""
    for key, value in keys.items():
        if (
            not isinstance(value, Typed)
            or value.type is not ValueType.ARRAY
            or not key.startswith(f"{arch}.")
        ):
            continue
        item_type = ValueType(int.from_bytes(value.data[:4], "little"))
        n = int.from_bytes(value.data[4:12], "little")
        if item_type not in STRUCT_CODES or "rope" in key or n == n_layer or not n:
            continue
        size = (len(value.data) - 12) // n
        items = [value.data[12 + i * size : 12 + (i + 1) * size] for i in range(n)]
        data = b"".join(items[i % n] for i in range(n_layer))
        keys[key] = Typed(ValueType.ARRAY, value.data[:4] + n_layer.to_bytes(8, "little") + data)


def logs(program: Path, header: Path) -> dict[str, str] | None:
    """The log of each run, None where llama.cpp makes no model of the header."""
    done = subprocess.run(
        [str(program), str(header), *RUNS],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    _, *parts = done.stdout.split("\nrun ")
    return dict(part.split("\n", 1) for part in parts) if parts else None


def differences(program: Path, path: Path) -> list[str] | None:
    """Every difference over all runs; None where llama.cpp makes no model of the header."""
    logged = logs(program, path)
    try:
        shape = read_shape(path)
    except (ShapeError, ModelFileError) as error:
        # A window of no tokens: llama.cpp allocates for a model that can attend to nothing.
        if "sliding_window is 0" in str(error):
            return None
        return None if logged is None else [f"refused, llama.cpp loads it: {error}"]
    if logged is None:
        return None
    found = []
    for run, log in logged.items():
        options, k_type, v_type = RUNS[run]
        # A context that llama.cpp refuses (a type whose block does not fit) has no log to compare.
        if "creating" not in log and "_kv_cache: size" not in log and "recurrent: size" not in log:
            continue
        try:
            policy = parse_policy(f"*:k={k_type}/v={v_type}").resolve(shape)
            memory = memory_of(shape, policy, options)
        except KVQuantError as error:
            found.append(f"{run}: refused, llama.cpp allocates: {error}")
            continue
        found += [
            f"{run}: {line}" for line in against_log(shape, memory, options.n_parallel, (k_type, v_type), log)
        ]
    return found


def write_headers(program: Path, folder: Path) -> None:
    """Upstream's header of every architecture, ARCH.gguf."""
    subprocess.run([str(program), "--write", str(folder)], check=True, capture_output=True, timeout=120)


def compare(program: Path, headers: Path, arch: str, work: Path) -> tuple[int, list[str]]:
    """How many headers of an architecture llama.cpp made a model of, and every difference in them."""
    problems, n_compared = [], 0
    for name, changes in CHANGES.items():
        path = changed(headers / f"{arch}.gguf", work / "header.gguf", arch, changes)
        found = differences(program, path)
        n_compared += found is not None
        problems += [f"{arch}, {name}: {line}" for line in found or []]
    return n_compared, problems


def main(program: Path, out: Path) -> None:
    """Compare everything and write the record."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_headers(program, work)
        found = {arch: compare(program, work, arch, work) for arch in sorted(RULES)}
    record = {
        "runs": list(RUNS),
        "changes": list(CHANGES),
        "n_headers": {arch: n for arch, (n, _) in found.items() if arch not in NO_HEADER},
        "no_header": NO_HEADER,
        "differences": [line for _, lines in found.values() for line in lines],
        "refused": REFUSED,
    }
    write_json(out, record)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
