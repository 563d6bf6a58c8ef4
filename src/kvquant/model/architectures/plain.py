"""Architectures whose layers all keep a full cache: load_arch_hparams changes nothing that matters for it.

Among them are llama and mistral3, the architectures Mistral models are converted to, and phi3: their files
may carry a sliding window, but the pinned llama.cpp does not read it (llama, mistral3, starcoder2, qwen2) or
switches it off (src/models/phi3.cpp:load_arch_hparams), so they cost a full cache.
"""

from __future__ import annotations

from kvquant.model.hparams import Hparams, Keys, Rule


def plain(_keys: Keys, hparams: Hparams) -> Hparams:
    """Return the common hparams as they are."""
    return hparams


RULES: dict[str, Rule] = dict.fromkeys(
    (
        "arcee",
        "command-r",
        "ernie4_5",
        "exaone",
        "gemma",
        "glm4",
        "glm4moe",
        "granite",
        "granitemoe",
        "internlm2",
        "llama",
        "minicpm",
        "mistral3",
        "phi3",
        "qwen2",
        "qwen2moe",
        "qwen2vl",
        "qwen3",
        "qwen3moe",
        "qwen3vl",
        "qwen3vlmoe",
        "seed_oss",
        "smollm3",
        "starcoder2",
    ),
    plain,
)
