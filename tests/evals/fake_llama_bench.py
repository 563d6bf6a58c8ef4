"""Stands in for llama-bench: answers what it is asked, slower by policy and by how often it has run.

A policy of q4_0 ends with an error, one of q5_0 sleeps, one of q5_1 keeps half of its results to itself.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

OPTIONS = dict(itertools.pairwise(sys.argv))
POLICY = OPTIONS["--kv-layers"]
RUNS = Path(__file__).with_name("runs")

TRANSFORM = OPTIONS.get("--kv-transform")

with RUNS.open("a") as file:
    file.write(f"{POLICY}{' ' + TRANSFORM if TRANSFORM else ''}\n")
if "q4_0" in POLICY:
    print("llama_bench: error: failed to create context")
    sys.exit(1)
if "q5_0" in POLICY:
    time.sleep(600)
drift = 0.5 ** len(RUNS.read_text().splitlines())
speed = drift * (80.0 if "q8_0" in POLICY else 100.0)
for depth in map(int, OPTIONS["--n-depth"].split(",")):
    for n_prompt, n_gen in ((int(OPTIONS["--n-prompt"]), 0), (0, int(OPTIONS["--n-gen"]))):
        if "q5_1" in POLICY and n_gen:
            continue
        row = {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": depth, "avg_ts": speed, "kv_layers": POLICY}
        print(json.dumps(row))
