#!/usr/bin/env python3
"""Stands in for llama-kv-divergence where policies must differ: KL is a sum of costs by side and type.

A file ``settings.json`` beside it may hold: n_chunks of the text, the costs' factor of a chunk (spread),
seconds to wait before each line of a policy, floor, and the number of lines after which it is killed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

N_LAYER = 32
NOISE = {"f16": 0.0, "q8_0": 0.004, "q5_0": 0.25, "q4_0": 1.0}
HEAVY = {("k", 0): 0.3, ("k", 5): 0.1, ("v", 31): 0.05}
"""Sides that cost more than the others' 0.001."""

settings = {"n_chunks": 40, "spread": 0.2, "seconds": 0.0, "floor": 0.002, "kill_after": 10**9}
given = Path(__file__).with_name("settings.json")
if given.exists():
    settings |= json.loads(given.read_text())


def cost(policy: str) -> float:
    """The KL of a policy: a list of rules LAYERS:[k=TYPE][/v=TYPE] or LAYERS:TYPE."""
    total = 0.0
    for rule in policy.split(","):
        where, _, types = rule.partition(":")
        first, _, last = where.partition("-")
        layers = range(N_LAYER) if where == "*" else range(int(first), int(last or first) + 1)
        found = dict(re.findall(r"([kv])=(\w+)", types)) or {"k": types, "v": types}
        total += sum(
            NOISE[name] * HEAVY.get((side, layer), 0.001) for layer in layers for side, name in found.items()
        )
    return total


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


arguments = sys.argv[1:]
options = dict(zip(arguments[::2], arguments[1::2], strict=False))
policies = []
for name, value in zip(arguments[::2], arguments[1::2], strict=False):
    if name == "--kv-layers":
        policies.append({"policy": value, "path": "prefill"})
    elif name == "--path":
        policies[-1]["path"] = value
n_ctx, score_from = int(options["--ctx-size"]), int(options["--score-from"])
positions = list(range(score_from, n_ctx - 1))
wanted = int(options["--n-tokens"]) // len(positions)
n_chunks = min(wanted, settings["n_chunks"])
say(kind="start", schema_version=2, n_chunks=n_chunks)
n_lines = 0
for chunk in range(int(options["--skip-chunks"]), n_chunks):
    say(kind="baseline", document=0, chunk=chunk, positions=positions, nll=[1.0] * len(positions))
    for index, policy in enumerate(policies):
        time.sleep(settings["seconds"])
        n_lines += 1
        if n_lines > settings["kill_after"]:
            os.kill(os.getpid(), signal.SIGKILL)
        exact = policy["policy"] == "*:f16" and policy["path"] == "prefill"
        mean = 0.0 if exact else settings["floor"] + cost(policy["policy"])
        wave = [1 + settings["spread"] * ((position * 7 + chunk) % 5 - 2) / 2 for position in positions]
        say(
            kind="chunk",
            policy=index,
            document=0,
            chunk=chunk,
            kl=[mean * factor for factor in wave],
            same_top=[True] * len(positions),
            nll=[1.0] * len(positions),
        )
done = [{"n_tokens": (n_chunks - int(options["--skip-chunks"])) * len(positions)} for _ in policies]
say(kind="end", policies=done)
