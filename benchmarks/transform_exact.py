"""Does an exact change of K leave a real model's predictions alone: at once, after save and restore, after a
context shift?

The model's weights are expanded to float32 first: 8-bit activations of quantized weights round the smallest
difference to another step. K and V are float32 and flash attention, which rounds such keys to float16, is
off. What is compared are the log probabilities of the likeliest tokens, greedy; the row of float16 keys,
without any transform, shows how large the smallest of roundings is on the same scale.

    python benchmarks/transform_exact.py --model smollm2-135m --programs "$(kvquant llama build)" \\
        --out benchmarks/results/transform-exact-smollm2-135m.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvquant.assets.find import model_path
from kvquant.cli.names import fetched_text
from kvquant.llama.build import read_info
from kvquant.llama.server import LlamaServer, ServerOptions
from provenance import provenance, write_record
from transform_cost import write_random

KINDS = ("diagonal", "matrix")
N_PROMPT, N_SHORT, N_SHIFTED = 160, 16, 64
N_CTX = 256
"""The prompt, and what is made of it, are longer than that where a shift is wanted."""
N_PROBS = 100

Answers = Mapping[str, list[dict[int, float]]]
"""By what was done before: of each generated token, log probabilities by token."""


def float_weights(model: Path, programs: Path, folder: Path) -> Path:
    """The same model with float32 weights, so that only float32 rounding is left to see."""
    path = folder / "f32.gguf"
    argv = [str(programs / "llama-quantize"), "--allow-requantize", str(model), str(path), "F32"]
    subprocess.run(argv, check=True, capture_output=True)
    return path


def answers(programs: Path, model: Path, text: str, *extra: str) -> Answers:
    """Generate at once, after a restored slot, and past a full context."""
    extra = ("--flash-attn", "off", "--swa-full", *extra)  # windows that forget cannot be gone on from
    options = ServerOptions(model, N_CTX, k_type="f32", v_type="f32", n_threads=1, extra=extra)
    with LlamaServer(programs, options) as server:
        prompt = server.tokenize(text)[:N_PROMPT]
        at_once = _log_probs(server.completion(prompt, N_SHORT, **_OPTIONS))
        server.save_slot()
        # Another sequence in its place; then what is read comes from the file.
        server.completion(prompt[::-1], 1, **_OPTIONS)
        server.restore_slot()
        again = server.completion(prompt, N_SHORT, **_OPTIONS)
        if again["timings"]["cache_n"] < N_PROMPT - 1:
            raise SystemExit("transform_exact: error: the restored slot was not used")
    shifting = replace(options, extra=("--context-shift", *extra))
    with LlamaServer(programs, shifting) as server:
        shifted = server.completion(prompt, N_CTX - N_PROMPT + N_SHIFTED, **_OPTIONS)
        if "slot context shift" not in server.log_text():
            raise SystemExit("transform_exact: error: the context was not shifted")
    after_shift = _log_probs(shifted)[-(N_SHIFTED // 2) :]
    return {"at once": at_once, "restored": _log_probs(again), "shifted": after_shift}


_OPTIONS: dict[str, Any] = {"n_probs": N_PROBS, "ignore_eos": True, "cache_prompt": True}


def _log_probs(answer: Mapping[str, Any]) -> list[dict[int, float]]:
    return [
        {entry["id"]: entry["logprob"] for entry in token["top_logprobs"]}
        for token in answer["completion_probabilities"]
    ]


def differences(left: Answers, right: Answers) -> dict[str, float | None]:
    """Nats by which the likeliest token's log probability differs at most; None where other tokens came."""
    return {place: _difference(left[place], right[place]) for place in left}


def _difference(left: list[dict[int, float]], right: list[dict[int, float]]) -> float | None:
    tops = [[max(token, key=lambda one: token[one]) for token in side] for side in (left, right)]
    if tops[0] != tops[1]:
        return None
    return max(abs(a[top] - b[top]) for a, b, top in zip(left, right, tops[0], strict=True))


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="of kvquant models")
    parser.add_argument("--programs", type=Path, required=True, metavar="DIR", help="of a patched build")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    options = parser.parse_args()
    record = provenance("benchmarks/transform_exact.py", ("numpy", "gguf"))
    info = read_info(options.programs.parent)
    record["build"] = None if info is None else [info.commit, info.series_digest]
    model = model_path(options.model, say=lambda line: print(line, file=sys.stderr))
    text = fetched_text("prose").read_text(encoding="utf-8")[: 8 * N_PROMPT]
    with tempfile.TemporaryDirectory(prefix="kvquant-") as name:
        folder = Path(name)
        weights = float_weights(model, options.programs, folder)
        plain = answers(options.programs, weights, text)
        rows = {"float16 keys": answers(options.programs, weights, text, "--cache-type-k", "f16")}
        for kind in KINDS:
            write_random(folder / kind, weights, kind)
            rows[kind] = answers(options.programs, weights, text, "--kv-transform", str(folder / kind))
    record |= {"model": options.model, "n_prompt": N_PROMPT, "n_ctx": N_CTX}
    record["differences"] = {name: differences(plain, row) for name, row in rows.items()}
    write_record(record, options.out)
    for name, row in record["differences"].items():
        print(
            name,
            *(
                f"{place} {'other tokens' if value is None else f'{value:.1e}'}"
                for place, value in row.items()
            ),
        )


if __name__ == "__main__":
    main()
