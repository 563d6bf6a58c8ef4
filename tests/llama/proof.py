"""What the proofs share: binaries under test, one small random model per architecture, one way to run both.

KVQUANT_LLAMA_BIN names the folder of a patched build, KVQUANT_STOCK_BIN a stock build of the same tree.
`make test` builds the first; where one is missing, what needs it is skipped and the report says so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kvquant.llama.logs import KVLog
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.llama.state import SequenceState, parse_state
from kvquant.model.shape import ModelShape
from write_random_gguf import RandomModel

PROMPT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and "
    "associated documentation files, to deal in the software without restriction, including without "
    "limitation the rights to use, copy, modify, merge, publish, distribute and sell copies of it."
)
"""About 280 bytes; the random models' tokenizers make a token of most of them."""

# Small, but with what the patch has to get right: biases, windows, recurrent layers, shared caches, layers
# without attention, latent K.
MODELS = {
    "llama": RandomModel(arch="llama", n_layer=5, n_ff=128),
    "qwen2": RandomModel(arch="qwen2", n_layer=4, n_ff=128),
    "qwen3": RandomModel(arch="qwen3", n_layer=4, head_dim=128, n_ff=128),
    "gemma3": RandomModel(arch="gemma3", n_layer=7, window=64, n_ff=128),
    "gemma4": RandomModel(
        arch="gemma4", n_layer=8, n_shared_kv=4, window=64, kv_heads=(2, 2, 2, 1, 2, 2, 2, 1)
    ),
    "qwen35": RandomModel(arch="qwen35", n_layer=9, n_nextn=1, n_ff=128),
    "deci": RandomModel(arch="deci", kv_heads=(2, 0, 1, 2), n_ff=128),
    "deepseek2": RandomModel(arch="deepseek2", n_layer=3, n_ff=128),
}
WITH_V = tuple(arch for arch in MODELS if arch != "deepseek2")


def programs(variable: str) -> Path | None:
    """The folder that an environment variable names, when there is a llama-server in it."""
    folder = Path(os.environ.get(variable) or "/nonexistent")
    return folder if (folder / "llama-server").is_file() else None


PATCHED = programs("KVQUANT_LLAMA_BIN")
STOCK = programs("KVQUANT_STOCK_BIN")

needs_patched = pytest.mark.skipif(PATCHED is None, reason="KVQUANT_LLAMA_BIN names no patched build")
needs_both = pytest.mark.skipif(
    PATCHED is None or STOCK is None,
    reason="KVQUANT_LLAMA_BIN and KVQUANT_STOCK_BIN do not both name a build",
)


@dataclass(frozen=True)
class Outcome:
    """What one run shows: answer and log probabilities, the saved slot, what the log says about the cache."""

    answer: dict[str, Any]
    saved: bytes
    log: KVLog

    @property
    def probabilities(self) -> list[Any]:
        """Each generated token with the log probability of every token of the vocabulary."""
        return list(self.answer["completion_probabilities"])

    def state(self, shape: ModelShape) -> SequenceState:
        return parse_state(self.saved, shape)


def run(folder: Path | None, options: ServerOptions, n_predict: int = 6) -> Outcome:
    """Start a server, run the prompt, save the slot as it is right after."""
    assert folder is not None
    with LlamaServer(folder, options) as server:
        answer = generate(server, n_predict)
        return Outcome(answer, server.save_slot().read_bytes(), server.kv_log())


def generate(server: LlamaServer, n_predict: int = 6, prompt: str | list[int] = PROMPT) -> dict[str, Any]:
    """Greedy tokens with the log probabilities of the whole vocabulary, printed with every digit.

    The grammar keeps random models to letters: the server says nothing about tokens that are no valid UTF-8.
    """
    return server.completion(
        prompt, n_predict, n_probs=1000, ignore_eos=True, grammar="root ::= [a-z ]+", return_tokens=True
    )


def small(model: Path, **changes: Any) -> ServerOptions:
    """Options for a short, single-threaded, repeatable run."""
    return replace(ServerOptions(model, n_ctx=512, n_threads=1), **changes)
