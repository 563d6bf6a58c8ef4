"""llama-bench's timings with ik_llama.cpp from its wheel: prefill and decode over filled caches, in JSON.

Run by attention_peers.py with a Python that has ik-llama-cpp-python installed, and nothing of this project.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from typing import Any

from ik_llama_cpp import _ctypes_api as api

TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}
"""Numbers of ggml types."""
N_BATCH = 512
# the wheel's Python leaves this one out
forget = api._lib.llama_kv_cache_seq_rm
forget.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
forget.restype = ctypes.c_bool
TOKEN = 100
"""Which token is read does not change the time."""


class Sequence:
    """One sequence in one context."""

    def __init__(self, path: str, type_name: str, n_ctx: int, n_threads: int) -> None:
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"ik_llama.cpp cannot load {path}")
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, N_BATCH, N_BATCH
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = TYPES[type_name]
        params.flash_attn = True
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"ik_llama.cpp makes no context of {n_ctx} with {type_name}")
        self.batch: Any = api.llama_batch_init(N_BATCH, 0, 1)
        self.n_past = 0

    def add(self, n_tokens: int) -> float:
        """Process so many tokens at once; the seconds."""
        batch = self.batch
        batch.n_tokens = n_tokens
        for i in range(n_tokens):
            batch.token[i], batch.pos[i] = TOKEN + i, self.n_past + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == n_tokens - 1
        start = time.perf_counter()
        if api.llama_decode(self.context, batch) != 0:
            raise SystemExit(f"ik_llama.cpp failed with {self.n_past} tokens in its cache")
        api.llama_get_logits_ith(self.context, n_tokens - 1)
        self.n_past += n_tokens
        return time.perf_counter() - start

    def back_to(self, n_tokens: int) -> None:
        """Leave so many tokens in the cache: forget those behind, or add what is lacking."""
        if not forget(self.context, 0, n_tokens, -1):
            raise SystemExit("ik_llama.cpp cannot shorten its cache")
        self.n_past = min(self.n_past, n_tokens)
        while self.n_past < n_tokens:
            self.add(min(N_BATCH, n_tokens - self.n_past))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--type", choices=TYPES, required=True)
    parser.add_argument("--depths", type=int, nargs="+", required=True)
    parser.add_argument("--n-prompt", type=int, required=True)
    parser.add_argument("--n-gen", type=int, required=True)
    parser.add_argument("--repetitions", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    n_ctx = max(options.depths) + options.n_prompt + options.n_gen
    sequence = Sequence(options.model, options.type, -(-n_ctx // 256) * 256, options.threads)
    sequence.back_to(N_BATCH)  # the first batch pays for what is set up once
    for depth in options.depths:
        for n_prompt, n_gen in ((options.n_prompt, 0), (0, options.n_gen)):
            rates = []
            for _ in range(options.repetitions):
                sequence.back_to(depth)
                seconds = sequence.add(n_prompt) if n_prompt else sum(sequence.add(1) for _ in range(n_gen))
                rates.append((n_prompt or n_gen) / seconds)
            row = {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": depth, "samples_ts": rates}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
