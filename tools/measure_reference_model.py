#!/usr/bin/env python3
"""Measure how the reference model responds to its KV cache, and draw the figures.

Reads the committed GGUF file, runs it in Torch under every cache setting on the test split, and writes
curves.json and its tables beside it and four figures under docs/figures. About a quarter of an hour.

Example: tools/measure_reference_model.py --parts uniform --points 32x1024x4 --documents 8
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

from kvquant.evals.statistics import mcnemar, paired_difference
from kvquant.files import write_atomic
from reference_model.curves import (
    LONG_NAMES,
    RecallPoint,
    ablations,
    draw_documents,
    draw_prompts,
    layer_settings,
    measure,
    uniform_settings,
)
from reference_model.figures import (
    difference_figure,
    read_log,
    response_figure,
    sensitivity_figure,
    training_figure,
)
from reference_model.gguf_file import load_gguf
from reference_model.network import ReferenceModel
from reference_model.tables import page

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "eval/reference-model"
FIGURES = ROOT / "docs/figures"
MOST_PAIRS = 128
"""Pairs that a document for perplexity and divergence states at most."""


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    """Return what one needs to run this again and compare."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": commit or None,
        "model_sha256": hashlib.sha256(options.gguf.read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "arguments": {
            key: [str(item) for item in value] if isinstance(value, list) else value
            for key, value in vars(options).items()
            if key not in ("gguf", "only_publish") and value is not None
        },
    }


def report(line: str) -> None:
    """Tell how far the measuring is."""
    print(f"{time.process_time():7.0f} s  {line}", file=sys.stderr, flush=True)


def with_statistics(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each recall cell its difference from f16 on the same questions: 95 % interval and exact p."""
    for result in results:
        for cell in result["recall"].values():
            cell["difference"] = paired_difference(cell["n_lost"], cell["n_gained"], cell["n"])
            cell["p"] = mcnemar(cell["n_lost"], cell["n_gained"])
    return results


def measure_uniform(options: argparse.Namespace, model: ReferenceModel) -> dict[str, Any]:
    """Return the response to one type for all layers."""
    prompts = draw_prompts(options.seed, options.points)
    documents = draw_documents(options.seed, options.documents, options.document_tokens, MOST_PAIRS)
    return {"results": with_statistics(measure(model, uniform_settings(), prompts, documents, report))}


def measure_long(options: argparse.Namespace, model: ReferenceModel) -> dict[str, Any]:
    """Return recall over long prompts for a few of the same settings."""
    settings = [setting for setting in uniform_settings() if setting.name in LONG_NAMES]
    prompts = draw_prompts(options.seed, options.long_points)
    return {"results": with_statistics(measure(model, settings, prompts, [], report))}


def measure_layers(options: argparse.Namespace, model: ReferenceModel) -> dict[str, Any]:
    """Return the response to one layer's K or V in `layer_type`, and to leaving parts of a layer out."""
    documents = draw_documents(options.seed, options.layer_documents, options.document_tokens, MOST_PAIRS)
    return {
        "type": options.layer_type,
        "ablations": list(ablations(model, documents)),
        "results": measure(
            model, layer_settings(model.config.n_layer, options.layer_type), {}, documents, report
        ),
    }


PARTS = {"uniform": measure_uniform, "long": measure_long, "layers": measure_layers}


def publish(record: dict[str, Any]) -> None:
    """Write the tables and figures of ``record``."""
    write_atomic(FOLDER / "curves.md", page(record))
    draw(record)


def draw(record: dict[str, Any]) -> None:
    """Draw the figures of ``record``, and the one of the training logs."""
    layers = record["layers"]
    FIGURES.mkdir(parents=True, exist_ok=True)
    logs = [read_log((FOLDER / name).read_text()) for name in ("log.jsonl", "log-seed-2.jsonl")]
    write_atomic(FIGURES / "reference-training.svg", training_figure(*logs))
    write_atomic(FIGURES / "reference-response.svg", response_figure(record["uniform"]["results"]))
    write_atomic(
        FIGURES / "reference-differences.svg",
        difference_figure(record["uniform"]["results"], record["long"]["results"]),
    )
    write_atomic(
        FIGURES / "reference-layers.svg",
        sensitivity_figure(layers["results"], layers["ablations"], layers["type"]),
    )


def main() -> None:
    """Read the command line, measure unless only figures are asked for, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, default=FOLDER / "kvquant-reference-f16.gguf")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    for name, points in (
        ("--points", ["32x1024x12", "128x1024x16"]),
        ("--long-points", ["256x2048x4", "256x4096x1"]),
    ):
        parser.add_argument(
            name,
            nargs="+",
            type=RecallPoint.parse,
            metavar="PAIRSxTOKENSxPROMPTS",
            help="recall tests",
            default=[RecallPoint.parse(point) for point in points],
        )
    parser.add_argument("--document-tokens", type=int, default=512, help="tokens of a document")
    parser.add_argument("--documents", type=int, default=8, help="documents for perplexity and divergence")
    parser.add_argument("--layer-documents", type=int, default=2, help="documents for one layer at a time")
    parser.add_argument("--layer-type", default="q4_0", help="the format one layer at a time is kept in")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only-publish", action="store_true", help="publish curves.json again, measure nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    target = FOLDER / "curves.json"
    for part in [] if options.only_publish else options.parts:
        measured = {"provenance": provenance(options), **PARTS[part](options, load_gguf(options.gguf))}
        record = json.loads(target.read_text()) if target.exists() else {}
        write_atomic(target, json.dumps({**record, part: measured}, indent=1) + "\n")
    record = json.loads(target.read_text())
    if set(record) == set(PARTS):
        publish(record)


if __name__ == "__main__":
    main()
