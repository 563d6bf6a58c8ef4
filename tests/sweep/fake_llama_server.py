"""Stands in for llama-server in sweeps: its log lines, /tokenize, and /completion streamed with progress.

It answers what a text says before, so that a probe finds right answers, unless the policy is one of these:
q4_0 crashes when it is asked, q5_0 never answers, q5_1 does not load, iq4_nl answers wrong from 1,024 tokens
on.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

if "--help" in sys.argv:
    print("--kv-layers POLICY")
    sys.exit(0)
OPTIONS = dict(itertools.pairwise(sys.argv))
POLICY, N_CTX = OPTIONS["--kv-layers"], int(OPTIONS["--ctx-size"])
BATCH = int(OPTIONS.get("--batch-size", "512"))
WORDS: dict[str, int] = {}
if started := os.environ.get("FAKE_STARTS"):
    with open(started, "a") as file:  # noqa: PTH123
        file.write(f"{POLICY} {' '.join(sys.argv[1:])} {sorted(os.sched_getaffinity(0))}\n")


def tokens_of(text: str) -> list[int]:
    return [WORDS.setdefault(word, len(WORDS) + 1) for word in text.split()]


def answer_to(prompt: list[int]) -> str:
    names = {number: word for word, number in WORDS.items()}
    text = " ".join(names[token] for token in prompt)
    asked = text.rpartition("said above: ")[2]
    found = re.search(re.escape(asked) + r" ([^.]+)\.", text)
    if "iq4_nl" in POLICY and len(prompt) > 900:
        return "nothing"
    return f" {found[1]}" if found else " word"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer({"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self.answer({"tokens": tokens_of(body["content"])})
            return
        if "q4_0" in POLICY:
            print("/x.cpp:1: GGML_ASSERT(n > 0) failed", flush=True)
            os._exit(134)
        if "q5_0" in POLICY:
            time.sleep(600)
        self.complete(body["prompt"], body["n_predict"])

    def complete(self, prompt: list[int], n_predict: int) -> None:
        self.send_response(200)
        self.end_headers()
        done = 0
        while done < len(prompt):
            done = min(len(prompt), done + BATCH)
            self.event({"prompt_progress": {"processed": done, "total": len(prompt), "time_ms": done * 2.0}})
        self.event({"content": answer_to(prompt), "tokens": [1], "stop": False})
        timings = {"prompt_n": len(prompt), "cache_n": 0, "prompt_ms": 2.0 * len(prompt)}
        timings |= {"predicted_n": n_predict, "predicted_ms": 10.0 * (n_predict - 1)}
        self.event({"content": "", "tokens": [], "stop": True, "timings": timings})

    def event(self, document: object) -> None:
        self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())

    def answer(self, document: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


if "q5_1" in POLICY:
    print("0.00.001.000 E load: failed to allocate buffer", flush=True)
    sys.exit(1)
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
for line in (
    "load_tensors:   CPU_Mapped model buffer size =    10.00 MiB",
    "llama_kv_cache:        CPU KV buffer size =     4.00 MiB",
    "sched_reserve:        CPU compute buffer size =     3.00 MiB",
    "llama_context:        CPU  output buffer size =     0.50 MiB",
    f"listening on http://127.0.0.1:{server.server_port}",
):
    print(f"0.00.010.000 I {line}", flush=True)
server.serve_forever()
