#!/usr/bin/env python3
"""Turn a training folder into the committed files: the GGUF model, the training log, and a small capture.

Example: tools/export_reference_model.py --run .cache/reference/seed-1
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from kvquant.analysis.captures import REFERENCE_CAPTURE
from kvquant.files import write_atomic
from kvquant.model.capture import save_capture
from kvquant.reference.tasks import Split, recall_prompt
from kvquant.reference.tokenizer import encode
from reference_model.capture import capture
from reference_model.gguf_file import export_gguf, load_gguf
from reference_model.train import load_model, read_plan

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "eval/reference-model"
CAPTURE = ROOT / f"src/kvquant/analysis/captures/{REFERENCE_CAPTURE}.npz"
N_QUERIES = 16


def main() -> None:
    """Read the command line and write the three files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=ROOT / ".cache/reference/seed-1")
    parser.add_argument("--checkpoint", default="checkpoint.npz", help="the file in the folder to export")
    parser.add_argument("--plan", type=Path, default=FOLDER / "plan.toml")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--capture", type=Path, default=CAPTURE)
    options = parser.parse_args()
    gguf = options.out / "kvquant-reference-f16.gguf"
    model = load_model(options.run / options.checkpoint, read_plan(options.plan))
    export_gguf(
        model,
        gguf,
        name="kvquant reference",
        description="An instrument for KV-cache experiments, not a language model",
    )
    write_atomic(options.out / "log.jsonl", (options.run / "log.jsonl").read_text())
    text = recall_prompt(np.random.default_rng(1), Split.TEST, n_pairs=32, n_tokens=160, n_asked=16).text
    n_tokens = len(encode(text))
    # The prompt ends with questions of two tokens each; the first of each is the query that must recall.
    save_capture(
        capture(load_gguf(gguf), text, range(n_tokens - 2 * N_QUERIES, n_tokens, 2), half=True),
        options.capture,
    )


if __name__ == "__main__":
    main()
