#!/usr/bin/env python3
"""Train the reference model by eval/reference-model/plan.toml, or resume from a checkpoint.

An interrupt or a termination request ends it after the step at hand, saved.

Example: tools/train_reference_model.py --seed 1 --out .cache/reference/seed-1 --minutes 10
"""

from __future__ import annotations

import argparse
import signal
import threading
import time
from pathlib import Path

import torch

from reference_model.gguf_file import load_gguf
from reference_model.train import read_plan, train

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Read the command line, train, and leave checkpoint.npz and log.jsonl in the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", type=Path, default=ROOT / "eval/reference-model/plan.toml")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / ".cache/reference/seed-1")
    parser.add_argument("--start-from", type=Path, help="an exported GGUF file to train further by --plan")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, saved, after so long")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked_to_stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked_to_stop.set())
    deadline = time.monotonic() + 60 * options.minutes
    train(
        read_plan(options.plan),
        options.seed,
        options.out,
        start=load_gguf(options.start_from) if options.start_from else None,
        should_stop=lambda: asked_to_stop.is_set() or time.monotonic() > deadline,
    )


if __name__ == "__main__":
    main()
