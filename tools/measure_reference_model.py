#!/usr/bin/env python3
"""Measure how the reference model responds to its KV cache, and draw the figures.

Reads the committed GGUF file, runs it in Torch under every cache setting on the test split, and writes
curves.json and its tables beside it and three figures under docs/figures. Minutes to an hour on two cores.

Example: tools/measure_reference_model.py --prompts 16 --documents 16
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from kvquant.files import write_atomic
from kvquant.reference.figures import read_log, response_figure, sensitivity_figure, training_figure
from kvquant.reference.gguf_file import load_gguf
from kvquant.reference.tables import page
from kvquant.torch.curves import ablations, draw_material, layer_settings, measure, uniform_settings

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "eval/reference-model"
FIGURES = ROOT / "docs/figures"


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    """Return what one needs to run this again and compare."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": commit or None,
        "model_sha256": hashlib.sha256(options.gguf.read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "seed": options.seed,
        "arguments": {
            key: value for key, value in vars(options).items() if isinstance(value, int | str | list)
        },
    }


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one run over all settings."""
    begun = time.monotonic()
    model = load_gguf(options.gguf)

    def report(line: str) -> None:
        print(f"{time.monotonic() - begun:7.0f} s  {line}", file=sys.stderr, flush=True)

    material = draw_material(
        options.seed, options.pairs, options.n_tokens, options.prompts, options.documents
    )
    uniform = measure(model, uniform_settings(), material, report)
    few = draw_material(options.seed + 1, options.pairs[:1], options.n_tokens, 1, options.layer_documents)
    layers = measure(model, layer_settings(model.config.n_layer, options.layer_type), few, report)
    return {
        "provenance": provenance(options),
        "n_tokens": options.n_tokens,
        "layer_type": options.layer_type,
        "uniform": uniform,
        "layers": layers,
        "ablations": list(ablations(model, few.documents)),
    }


def publish(record: dict[str, Any]) -> None:
    """Write the tables and figures of ``record``, and the figure of the training log."""
    write_atomic(FOLDER / "curves.md", page(record))
    FIGURES.mkdir(parents=True, exist_ok=True)
    rows = read_log((FOLDER / "log.jsonl").read_text())
    write_atomic(FIGURES / "reference-training.svg", training_figure(rows))
    write_atomic(FIGURES / "reference-response.svg", response_figure(record["uniform"]))
    write_atomic(
        FIGURES / "reference-layers.svg",
        sensitivity_figure(record["layers"], record["ablations"], record["layer_type"]),
    )


def main() -> None:
    """Read the command line, measure unless only figures are asked for, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, default=FOLDER / "kvquant-reference-f16.gguf")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--n-tokens", type=int, default=1024, help="tokens of a prompt or document")
    parser.add_argument("--pairs", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--prompts", type=int, default=16, help="recall prompts per number of pairs")
    parser.add_argument("--documents", type=int, default=16, help="documents for perplexity and divergence")
    parser.add_argument("--layer-documents", type=int, default=8, help="documents for one layer at a time")
    parser.add_argument("--layer-type", default="q4_0", help="the format one layer at a time is kept in")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only-publish", action="store_true", help="publish curves.json again, measure nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    target = FOLDER / "curves.json"
    if not options.only_publish:
        write_atomic(target, json.dumps(measured(options), indent=1) + "\n")
    publish(json.loads(target.read_text()))


if __name__ == "__main__":
    main()
