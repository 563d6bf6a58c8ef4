"""Proof: the parser in the patch and the package's agree on texts nobody wrote down.

The vectors' texts are cut, joined and sprinkled with the characters that matter. What the package makes of
each, down to the column, becomes a vector file of its own for the program that the patch adds.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from kvquant.errors import PolicyError
from kvquant.formats.registry import CACHE_TYPES
from kvquant.policy import parse_policy
from llama.proof import PATCHED, needs_patched
from policy.checks import LayerKinds

VECTORS = Path(__file__).parents[1] / "vectors" / "policy.json"
PIECES = (
    *"0123456789kvKV*-:,/=#; \tqQ_f1b\n\r\x00\u00e9\u0663\u212a\u2013\u00a0\U0001d7d8",
    *("kv", "k=", "v=", "q8_0", "q4_0", "65535", "65536", "0-", "1:", "f16", "2-3:iq4_nl"),
    *(
        "first",
        "last",
        "first2",
        "last2",
        "-last1",
        "-kvlast1",
        "kvlast3",
        "rest",
        "rest:q4_0",
        "hybrid",
        "# x\n",
    ),
)
N_TEXTS, N_RESOLVED = 20_000, 5_000


def mutated(texts: list[str], rng: random.Random) -> str:
    """A text of the vectors, or two joined, with up to three places replaced."""
    text = rng.choice(texts)
    if rng.random() < 0.3:
        text += "," + rng.choice(texts)
    for _ in range(rng.randrange(4)):
        start = rng.randrange(len(text) + 1)
        text = text[:start] + rng.choice(("", rng.choice(PIECES))) + text[start + rng.randrange(3) :]
    return text


def parsed(text: str) -> dict[str, Any]:
    """The vector of a text, by the package."""
    try:
        return {"text": text, "canonical": str(parse_policy(text, CACHE_TYPES))}
    except PolicyError as error:
        line = {"line": error.line} if error.line != 1 else {}
        return {"text": text, "error": error.code, "column": error.column, **line}


def resolved(text: str, rng: random.Random) -> dict[str, Any]:
    """The vector of a policy on random layers, by the package."""
    kinds = tuple(rng.choices(("attn", "none", "shared"), (2, 1, 1), k=rng.randrange(1, 12)))
    default_k, default_v = rng.choice(CACHE_TYPES), rng.choice(CACHE_TYPES)
    vector: dict[str, Any] = {
        "text": text, "default_k": default_k, "default_v": default_v, "layers": list(kinds),
    }  # fmt: skip
    try:
        found = parse_policy(text, CACHE_TYPES).resolve(LayerKinds(kinds), default_k, default_v)
    except PolicyError as error:
        return {**vector, "error": error.code}
    types = {layer.layer: layer for layer in found.layers}
    return {
        **vector,
        "k": [types[layer].k_type if layer in types else None for layer in range(len(kinds))],
        "v": [types[layer].v_type if layer in types else None for layer in range(len(kinds))],
        "warnings": [warning.code for warning in found.warnings],
    }


@needs_patched
def test_both_parsers_agree(tmp_path: Path) -> None:
    rng = random.Random(7)
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    texts = [case["text"] for part in ("parse", "resolve") for case in vectors[part]]
    parse = [parsed(text) for text in sorted({mutated(texts, rng) for _ in range(N_TEXTS)})]
    accepted = [case["text"] for case in parse if "canonical" in case]
    resolve = [resolved(rng.choice(accepted), rng) for _ in range(N_RESOLVED)]
    kinds = Counter(case.get("error", "accepted") for case in parse + resolve)
    assert len(kinds) == 8 and min(kinds.values()) > 1, f"too few cases of a kind: {kinds}"
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps({"types": CACHE_TYPES, "parse": parse, "resolve": resolve}), encoding="utf-8")
    program = (PATCHED or Path()) / "llama-kv-layers-test"
    done = subprocess.run([program, path], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    assert int(done.stdout.split()[0]) >= len(parse) + len(resolve), done.stdout
