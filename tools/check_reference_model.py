#!/usr/bin/env python3
"""Check the committed reference model in llama-server: tokens, logits, and answers over /v1/chat/completions.

Writes eval/reference-model/llama_cpp.json. Logits are compared as log-probabilities after a prompt.

Example: tools/check_reference_model.py --programs .cache/llama.cpp/build/bin
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvquant.errors import CheckFailed
from kvquant.files import write_atomic
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.reference.tasks import REQUESTS, Size, Split, chat_question, held_out_documents
from kvquant.reference.tokenizer import encode
from kvquant.reference.vocabulary import TOKENS
from reference_model.curves import Setting
from reference_model.gguf_file import load_gguf
from reference_model.network import ReferenceModel
from reference_model.scoring import Share, log_probabilities, read

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "eval/reference-model"
LIKELY = 1e-3
TOLERANCE = 0.02
"""Largest difference allowed, in nats, between log-probabilities of tokens more likely than LIKELY.

Weights are the same float16 numbers on both sides and both keep K and V in float16. llama.cpp's CPU kernels
also round the other factor of a product with a float16 matrix to float16, which Torch here does not: 11 bits
of mantissa through 32 layers. The rest is the order of summation.
"""


def token_agreement(server: LlamaServer, texts: list[str]) -> dict[str, int]:
    """Return how many of ``texts`` the server reads as exactly the tokens Python does."""
    same = sum(server.tokenize(text) == encode(text) for text in texts)
    return {"texts": len(texts), "same": same}


def logits_agreement(
    server: LlamaServer, model: ReferenceModel, lengths: list[int], seed: int, cache_type: str = "f16"
) -> dict[str, Any]:
    """Return how far the log-probabilities of the next token differ after prompts of ``lengths`` tokens.

    ``cache_type`` is what the server keeps K and V in; `effect` is how far it moves Torch from an f16 cache.
    """
    write = Setting(cache_type, f"*:{cache_type}").writer(model)
    exact = Setting("f16", "*:f16").writer(model)
    largest, mean, effect, same_top = [], [], [], 0
    documents = held_out_documents(seed, Split.TEST, len(lengths), Size(max(lengths) + 1, 64))
    for document, n_tokens in zip(documents, lengths, strict=True):
        reading = read(document)
        expected = log_probabilities(model, reading, write)[n_tokens - 1].numpy()
        answer = server.completion(
            reading.tokens[:n_tokens].tolist(), 1, n_probs=len(TOKENS), cache_prompt=False
        )
        found = np.full(len(TOKENS), np.nan)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        likely = expected > np.log(LIKELY)
        difference = np.abs(found - expected)[likely]
        largest.append(float(difference.max()))
        mean.append(float(difference.mean()))
        unquantized = log_probabilities(model, reading, exact)[n_tokens - 1].numpy()
        effect.append(float(np.abs(unquantized - expected)[likely].mean()))
        same_top += int(np.nanargmax(found) == expected.argmax())
    return {
        "prompts": len(lengths),
        "tokens_with_probability_above": LIKELY,
        "largest_difference": max(largest),
        "mean_difference": float(np.mean(mean)),
        "effect": float(np.mean(effect)),
        "same_top": same_top,
    }


def chat_answers(server: LlamaServer, n: int, n_pairs: int, n_tokens: int, seed: int) -> dict[str, Any]:
    """Return, by request kind, how many test questions the server answers exactly."""
    right: dict[str, list[bool]] = defaultdict(list)
    for kind in REQUESTS:
        for index in range(n):
            rng = np.random.default_rng([seed, index])
            question = chat_question(rng, Split.TEST, kind, n_pairs, n_tokens)
            body = {
                "messages": [{"role": "user", "content": question.user}],
                "temperature": 0,
                "max_tokens": 64,
            }
            reply = server.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
            right[kind].append(reply.strip() == question.answer.strip())
    return {
        kind: {"n_right": sum(hits), "n": len(hits), "interval": Share(sum(hits), len(hits)).interval}
        for kind, hits in right.items()
    }


def agrees(record: Mapping[str, Any]) -> bool:
    """Return whether tokens are the same and logits within the tolerance."""
    tokens, logits = record["tokens"], record["logits"]
    return bool(tokens["same"] == tokens["texts"] and logits["largest_difference"] <= TOLERANCE)


def main() -> int:
    """Start the server on the model, run the three checks, write the record, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=Path, required=True, help="the folder llama-server is in")
    parser.add_argument("--gguf", type=Path, default=FOLDER / "kvquant-reference-f16.gguf")
    parser.add_argument("--out", type=Path, default=FOLDER / "llama_cpp.json")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--questions", type=int, default=20, help="chat questions of each kind")
    parser.add_argument("--threads", type=int, default=1, help="more only slow it down on a busy machine")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--n-tokens", type=int, default=900, help="tokens of the facts of a chat question")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_gguf(options.gguf)
    texts = [document.text for document in held_out_documents(options.seed, Split.TEST, 32, Size(200, 32))]
    texts += ["", "\n", "été \U0001f600 \\n\x01", " babo=1000->kobu"]
    lengths = [1, 16, 64, 200, 400, 600, 800, 1000]
    started = ServerOptions(model=options.gguf, n_ctx=4096, n_threads=options.threads)
    quantized = {}
    for name in ("q8_0", "q4_0"):
        with LlamaServer(options.programs, replace(started, k_type=name, v_type=name)) as server:
            quantized[name] = logits_agreement(server, model, lengths, options.seed, name)
    with LlamaServer(options.programs, started) as server:
        record = {
            "model_sha256": hashlib.sha256(options.gguf.read_bytes()).hexdigest(),
            "build": server.get("/props").get("build_info"),
            "seed": options.seed,
            "tokens": token_agreement(server, texts),
            "logits": logits_agreement(server, model, lengths, options.seed),
            "quantized": quantized,
            "chat": {
                "n_pairs": options.pairs,
                "n_tokens": options.n_tokens,
                **chat_answers(server, options.questions, options.pairs, options.n_tokens, options.seed),
            },
        }
    write_atomic(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    if not agrees(record):
        print(f"tokens differ, or log-probabilities by more than {TOLERANCE}", file=sys.stderr)
        return CheckFailed.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
