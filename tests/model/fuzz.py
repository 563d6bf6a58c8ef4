"""Mutated GGUF headers and policies: a shape and its bytes, or a line with advice that can be followed.

Seeded, so that a failure can be repeated: ``python -m model.fuzz N [SEED]`` runs N mutations (`make fuzz`:
100,000), tests/model/test_fuzz.py a part of them.
"""

from __future__ import annotations

import random
import re
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kvquant.errors import KVQuantError
from kvquant.memory import check_types, memory_of, not_rotated, server_options
from kvquant.model.architectures import RULES, shape_of
from kvquant.model.gguf_file import open_model
from kvquant.model.gguf_types import ValueType
from kvquant.policy import parse_policy
from model.gguf_bytes import GgufFile, Tensor, arch_keys, int_array, number, string_array

OPTIONS = {
    # of every command that takes a model
    *("--model", "--shape", "--policy", "--default", "--ctx", "--parallel"),
    # of llama.cpp's programs, always named with the program
    *("--lora", "--mmproj", "--control-vector", "--imatrix"),
}

_NUMBERS = (
    0,
    1,
    2,
    31,
    32,
    64,
    255,
    256,
    511,
    512,
    513,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
_WORDS = (
    b"llama",
    b"bert",
    b"clip",
    b"adapter",
    b"imatrix",
    b"qwen35",
    b"deci",
    b"eagle3",
    b"xx",
    b"\xff\xfe",
)
_POLICIES = (
    *(
        "q8_0",
        "*:q4_0",
        "0-10:q8_0,11-:q4_0",
        "first2:q8_0,last2:q8_0,rest:q4_0",
        "kv0:q4_0",
        "hybrid",
        "k8v4",
    ),
    *(
        "*:k=q8_0/v=q4_0",
        "0:f16",
        "",
        ",",
        "0-:",
        "-1:q8_0",
        "0:q9",
        "*:q4_0,0:q8_0",
        "65535:q8_0",
        "65536:q8_0",
    ),
)
_BITS = (
    "q8_0",
    "q4_0",
    "k=",
    "v=",
    "/",
    ",",
    ":",
    "-",
    "*",
    "kv",
    "rest",
    "first",
    "last",
    "0",
    "99999",
    " ",
    "\n",
    "é",
)


def seeds() -> list[bytes]:
    """Whole files of every architecture with rules, and of other kinds."""
    extra = {
        "attention.sliding_window": 64,
        "attention.sliding_window_pattern": int_array([1, 0, 1, 0], ValueType.BOOL),
        "attention.key_length": 64,
        "attention.value_length": 64,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 128,
        "ssm.state_size": 32,
        "ssm.group_count": 2,
        "wkv.head_size": 64,
        "kda.head_dim": 32,
        "num_loops": 2,
        "rope.scaling.factor": 2.0,
    }
    found = []
    for arch in sorted(RULES):
        keys = {**arch_keys(arch), **{f"{arch}.{key}": value for key, value in extra.items()}}
        keys["tokenizer.ggml.tokens"] = string_array(["a", "bb", "ccc"])
        keys["split.count"] = number(ValueType.UINT16, 1)
        found.append(GgufFile(keys, [Tensor("blk.0.attn_k.weight", (32, 2), 8)], bytes(96)).encoded())
    return found


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with a few bytes changed, cut, doubled or taken from elsewhere."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out)) if out else 0
        kind = rng.randrange(7)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            out[at : at + 8] = struct.pack("<Q", rng.choice(_NUMBERS))
        elif kind == 2:
            out[at : at + 4] = struct.pack("<I", rng.choice(_NUMBERS) % 2**32)
        elif kind == 3:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            out[at:at] = out[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            word = rng.choice(_WORDS)
            out[at : at + len(word)] = word
        else:
            del out[at:]
    return bytes(out)


def policies(rng: random.Random) -> str:
    """A policy, whole or with pieces put in, taken out and turned around."""
    text = rng.choice(_POLICIES)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + (rng.choice(_BITS) if rng.random() < 0.7 else "") + text[at + rng.randrange(3) :]
    return text


def line_of(path: Path, text: str) -> str:
    """What is said about the file at ``path`` under a policy: the error's line, or "" where all went well."""
    try:
        model = open_model(path)
        said = [*model.not_loadable()]
        shape = shape_of(model)
        policy = parse_policy(text).resolve(shape)
        said.append(not_rotated(shape, policy))
        check_types(shape, policy)
        memory_of(shape, policy, server_options(4096))
    except KVQuantError as error:
        return str(error)
    return next((line for line in said if line), "")


def problems(path: Path, text: str) -> Iterator[str]:
    """What is wrong with the line on a file and a policy."""
    line = line_of(path, text)
    # A policy's error shows the text with a mark below it, on lines of their own.
    if not line.replace("\n", "").isprintable():
        yield f"not printable: {line!r}"
    advice, *_shown = line.split("\n")
    unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", advice)) - OPTIONS
    if unknown:
        yield f"advises {', '.join(sorted(unknown))}: {line}"


def run(n: int, seed: int, folder: Path) -> Counter[str]:
    """Try ``n`` mutations; return how many were done and refused. Raises AssertionError."""
    rng = random.Random(seed)
    files = seeds()
    path = folder / "model.gguf"
    kinds: Counter[str] = Counter()
    for index in range(n):
        data, text = mutated(rng.choice(files), rng), policies(rng)
        path.write_bytes(data)
        for problem in problems(path, text):
            raise AssertionError(f"mutation {index} of seed {seed}, policy {text!r}: {problem}")
        kinds["done" if not line_of(path, text) else "refused"] += 1
    return kinds


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        print(dict(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(work))))
